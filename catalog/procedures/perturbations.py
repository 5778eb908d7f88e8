"""Perturbations that a fit has not seen, learnt with its networks as they are."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.catalog.parts.shifts import ExactShifts
from fieldguide.catalog.svae import SVAE
from fieldguide.inference.checks.labels import label_texts
from fieldguide.inference.data.interventions import says_none
from fieldguide.inference.data.perturbations import Perturbations
from fieldguide.inference.data.reading import check_data, column_of
from fieldguide.inference.data.schema import FittedSchema
from fieldguide.inference.fitted import Fit
from fieldguide.inference.randomness import isolated

FIELD = "perturbation"


def learn_perturbations(fitted: Fit, data: Any) -> Fit:
    """Return a fit that knows the new perturbations of some cells too; all that was learnt before stays as it is.

    Encoder and decoder are not trained. Given the latents that the encoder finds in the new cells, the best shifts of
    the new perturbations and the probabilities of their mask are known in closed form: one pass over the cells.

    Parameters
    ----------
    fitted : Fit
        Of "svae" with ``mask="exact"`` and any prior but "vae".
    data : AnnData
        Cells of new perturbations; cells of known ones, and controls, are welcome and change nothing. In a cell with
        several perturbations the shifts of the known ones are taken out first.

    Returns
    -------
    Fit
        It holds no data, as one that was loaded from a file.

    Raises
    ------
    TypeError
        For a fit of another program.
    ValueError
        If the cells have no perturbation that is new, or new ones that occur together alone.
    """
    program = fitted.program if isinstance(fitted, Fit) else None
    if not isinstance(program, SVAE) or not isinstance(program.shifts, ExactShifts) or fitted.schema is None:
        raise TypeError(
            "new perturbations are learnt by a fit of 'svae' with mask='exact' and a prior other than 'vae'"
        )
    check_data(data)
    place, state = fitted.schema.places[FIELD], fitted.schema.states[FIELD]
    known = list(state["perturbations"])
    new = _new_names(fitted, data, place, state)
    states = fitted.schema.states | {FIELD: state | {"perturbations": known + new}}
    schema = FittedSchema(fitted.schema.schema, fitted.schema.places, states)
    arguments = fitted.arguments | {f"n_{FIELD}": len(known) + len(new)}
    with isolated(torch.device("cpu")):
        grown = fitted.entry.program(**arguments)
    grown.load_state_dict(_grown(program.state_dict(), grown.state_dict()))
    result = replace(
        fitted,
        program=grown.to(fitted.device).eval(),
        schema=schema,
        arguments=arguments,
        dataset=None,
        annotation=None,
    )
    dataset = result.read(data)
    codes = dataset.stores[FIELD].gather(np.arange(dataset.n_cells))
    latents = torch.as_tensor(result.latent(data)).to(fitted.device)
    grown.shifts.learn(latents, codes.to(fitted.device), len(known))  # pyright: ignore
    return result


def _new_names(fitted: Fit, data: Any, place: str, state: dict[str, Any]) -> list[str]:
    """Perturbations of the cells that the fit does not know, in order."""
    field = replace(fitted.schema.schema.fields[FIELD], separator=state["separator"], control=())  # pyright: ignore
    assert isinstance(field, Perturbations)
    labels = pd.unique(label_texts(column_of(FIELD, data, place)).astype(str))
    usual = () if state.get("named", False) else (label for label in labels if says_none(label))
    known = {*state["perturbations"], *state["control"], *usual}
    alone = [label for label in labels if label not in known]
    parts = {part for label in alone for part in field.parts(label, state["control"], [*known, *alone])}
    new = sorted(parts - known)
    if not new:
        raise ValueError(f"the cells have no perturbation that the fit does not know ({len(known)} labels)")
    return new


def _grown(small: dict[str, torch.Tensor], large: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State of the larger program: what is longer there has the values of the smaller one first."""
    state = {}
    for name, value in large.items():
        state[name] = small[name]
        if value.shape != small[name].shape:
            new = value[len(small[name]) :].to(small[name].device)
            state[name] = torch.cat((small[name], torch.ones_like(new) if name.endswith("share") else 0 * new))
    return state
