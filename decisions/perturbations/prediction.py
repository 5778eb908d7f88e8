"""What perturbations are expected to do to expression, combinations that were never seen among them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decoding import proportions
from fieldguide.decisions.perturbations.screen import PSEUDO, conditioned
from fieldguide.decisions.perturbations.targets import codes_of_label, perturbation_field
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.checks.labels import label_text
from fieldguide.inference.fitted import Fit
from fieldguide.inference.messages import caution

BLOCK = 4096


def predicted_expression(
    fitted: Fit, perturbations: Any, data=None, *, dose: Any = 1.0, draws: Any = 500, seed: Any = 0
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
    ValueError
        For a label that is missing, has a part that the training data had not, or says "control" where they had none.

    Warns
    -----
    UserWarning
        Of labels that shift no latent, and are predicted to be like controls.
    """
    draws, seed = checked_int("draws", draws, 1), checked_seed(seed)
    dose = checked_real("dose", dose, at_least=0)
    labels, codes = _labelled(fitted, perturbations)
    dataset = fitted.read(data)
    rows = np.sort(np.random.default_rng(seed).choice(dataset.n_cells, draws))
    batch = {key: values.to(fitted.device) for key, values in dataset.batch(rows).items()}
    if dose != 1 and "dose" not in batch:
        raise ValueError(f"dose={dose:g}: this fit of {fitted.name} read no doses")
    means = [proportions(fitted, conditioned(fitted, batch, row, dose), seed).mean(0) for row in codes]
    control = proportions(fitted, conditioned(fitted, batch, np.array([-1]), dose), seed).mean(0)
    moved = [bool((mean != control).any()) or bool((row < 0).all()) for mean, row in zip(means, codes, strict=True)]
    still = [label for label, away in zip(labels, moved, strict=True) if not away]
    if still:
        more = f" ({len(still)} such labels)" if len(still) > 1 else ""
        caution(f"{still[0]!r} is predicted to do nothing{more}: in this fit of {fitted.name} it shifts no latent")
    return _table(torch.stack(means).double().cpu().numpy(), labels, dataset)


def additive_expression(fitted: Fit, perturbations: Any, data=None) -> pd.DataFrame:
    """Return the proportion of each gene by adding up what single perturbations are observed to do: no model at all.

    The baseline of `predicted_expression`, hard to beat where perturbations do not interact. To the log of the
    proportions of the controls are added the differences of the cells that have one part of the label alone.

    Parameters
    ----------
    fitted : Fit
        Of a program with a field of perturbations and counts; it says how the data are read, and nothing else of it is
        used.
    perturbations : sequence of str
        Labels, written as those of the training data.
    data : optional
        Cells with controls, and with each part alone; the training data by default.

    Returns
    -------
    DataFrame [labels, G]
        Rows sum to one.

    Raises
    ------
    ValueError
        If there are no controls.

    Warns
    -----
    UserWarning
        Of labels with a part that no cell has alone; their rows are NaN.
    """
    labels, wanted = _labelled(fitted, perturbations)
    name, _, state = perturbation_field(fitted)
    dataset = fitted.read(data)
    if "counts" not in dataset.stores:
        raise TypeError(f"this fit of {fitted.name} reads no counts")
    codes = dataset.stores[name].gather(np.arange(dataset.n_cells)).numpy()
    single = np.where((codes >= 0).sum(1) <= 1, codes.max(1), len(state["perturbations"]))
    levels: dict[int, np.ndarray] = {}
    for code in dict.fromkeys([-1, *(int(c) for row in wanted for c in row if c >= 0)]):
        rows = np.flatnonzero(single == code)
        if not len(rows) and code < 0:
            raise ValueError("the data have no controls: there is nothing to add to")
        if not len(rows):
            caution(f"the data have no cells with {state['perturbations'][code]!r} alone: its labels have no sum")
            levels[code] = np.full(dataset.stores["counts"].shape[1], np.nan)
            continue
        total = np.sum([_sum(dataset, rows[k : k + BLOCK]) for k in range(0, len(rows), BLOCK)], 0)
        levels[code] = np.log(total / total.sum() + PSEUDO)
    means = []
    for row in wanted:
        parts = [levels[int(code)] - levels[-1] for code in row if code >= 0]
        level = np.exp(np.sum([levels[-1], *parts], 0))
        means.append(level / level.sum())
    return _table(np.stack(means), labels, dataset)


def _sum(dataset: Any, rows: np.ndarray) -> np.ndarray:
    return dataset.stores["counts"].gather(rows).double().numpy().sum(0)


def _labelled(fitted: Any, perturbations: Any) -> tuple[list[str], list[np.ndarray]]:
    """Labels as text, and the codes of each, -1 for a control."""
    if isinstance(perturbations, str) or not isinstance(perturbations, Iterable):
        raise TypeError(f"perturbations is a list of labels, [{perturbations!r}], not {perturbations!r}")
    given = list(perturbations)
    if not given:
        raise ValueError("perturbations names no label")
    codes = [codes_of_label(fitted, "perturbations", label) for label in given]
    return [label_text(label) for label in given], codes


def _table(values: np.ndarray, labels: list[str], dataset: Any) -> pd.DataFrame:
    genes = None if dataset.var_names is None else pd.Index(dataset.var_names, name="gene")
    return pd.DataFrame(values, index=pd.Index(labels, name="perturbation"), columns=genes)
