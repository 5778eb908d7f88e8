"""What perturbations are expected to do to expression, combinations that were never seen among them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decoding import proportions
from fieldguide.decisions.perturbations.screen import conditioned
from fieldguide.decisions.perturbations.targets import perturbation_field
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.checks.labels import label_text
from fieldguide.inference.fitted import Fit


def predicted_expression(
    fitted: Fit, perturbations: Iterable[str], data=None, *, dose: Any = 1.0, draws: Any = 500, seed: Any = 0
) -> pd.DataFrame:
    """Return the expected proportion of each gene under perturbations, as the fitted program has it.

    Latents are drawn from the prior that the program has under each label, and the proportions are averaged. A
    combination ("KLF1+BAK1") needs its parts in the training data, not itself: shifts of latents add.

    Parameters
    ----------
    fitted : Fit
        Of a program with a field of perturbations and a deterministic site ``rho``.
    perturbations : sequence of str
        Labels, written as those of the training data; a control is one too.
    data : optional
        Cells whose other fields (batches) are taken, in turn; the training data by default.
    dose : float
        As a share of the largest of each perturbation, for a fit that read doses.
    draws : int
        How many cells are drawn for each label.
    seed : int

    Returns
    -------
    DataFrame [labels, G]
        Rows sum to one.

    Raises
    ------
    SchemaError
        For a label with a part that the training data had not.
    """
    draws, seed = checked_int("draws", draws, 1), checked_seed(seed)
    dose = checked_real("dose", dose, at_least=0)
    if isinstance(perturbations, str) or not isinstance(perturbations, Iterable):
        raise TypeError(f"perturbations is a list of labels, [{perturbations!r}], not {perturbations!r}")
    labels = [label_text(label) for label in perturbations]
    if not labels:
        raise ValueError("perturbations names no label")
    name, field, state = perturbation_field(fitted)
    place = fitted.schema.places[name]
    codes = field.read(name, pd.DataFrame({place: labels}), place, state).values
    dataset = fitted.read(data)
    rows = np.sort(np.random.default_rng(seed).choice(dataset.n_cells, draws))
    batch = {key: values.to(fitted.device) for key, values in dataset.batch(rows).items()}
    if dose != 1 and "dose" not in batch:
        raise ValueError(f"dose={dose:g}: this fit of {fitted.name} read no doses")
    means = [proportions(fitted, conditioned(fitted, batch, row.numpy(), dose), seed).mean(0) for row in codes]
    index = pd.Index(labels, name="perturbation")
    genes = None if dataset.var_names is None else pd.Index(dataset.var_names, name="gene")
    return pd.DataFrame(torch.stack(means).double().cpu().numpy(), index=index, columns=genes)
