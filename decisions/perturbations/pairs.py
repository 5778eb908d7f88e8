"""What a treatment is expected to do in a context, pairs that were never seen among them, beside plain baselines."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.decoding import PROPORTIONS, encoded, expected_values
from fieldguide.decisions.perturbations.figures import response_scatter
from fieldguide.decisions.perturbations.screen import CONTROL, PSEUDO, Screen, conditioned, read_screen
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.checks.labels import find_label
from fieldguide.inference.fitted import Fit
from fieldguide.inference.randomness import stream

INTERVAL = (0.025, 0.975)


def context_responses(
    fitted: Fit,
    pairs: Any = None,
    data=None,
    *,
    dose: Any = 1.0,
    draws: Any = 100,
    cells: Any = 100,
    seed: Any = 0,
) -> Decision:
    """Return the response of each gene to a treatment in a context, as the fitted program has it.

    Controls of the context are drawn with their latents that no treatment changes; the others are drawn from their
    prior, under the control and under the treatment, and both are decoded. Of a pair that was never seen, what is not
    known of its latents is drawn anew each time, so that intervals are wide where the pair may do anything. Beside it
    stands what needs no model: the mean response of the other contexts ("additive").

    Parameters
    ----------
    fitted : Fit
        Of a program with contexts, perturbations and blocks of latents, such as "fcr".
    pairs : list of (context, perturbation), optional
        Combinations are written "A+B". By default every context with every label of the data.
    data : optional
        Cells, among them controls of each context; the training data by default. Cells of a pair that the program was
        not trained on say how good its prediction is.
    dose : float
        As a share of the largest of each perturbation, where doses were read.
    draws, cells : int
        Draws of what is not known, and controls decoded in each of them.
    seed : int

    Returns
    -------
    Decision
        ``table``, one row a pair and gene: ``context``, ``perturbation``, ``gene``, ``control`` (observed level),
        ``response``, ``low`` and ``high`` (95 %), ``additive``, ``observed`` (NaN without cells). Responses to counts
        are log2 fold changes of mean proportions, else differences of means. ``diagnostics``, one row a pair:
        ``n_cells`` (in the data), ``extrapolated`` (whether training had no cell of a part of it in the context), and
        R2 over the genes of the observed response: ``r2``, ``r2_additive``, ``r2_no_effect`` (of no response at all).
        ``plot`` draws the pairs.

    Raises
    ------
    TypeError
        For a fit without contexts or blocks of latents.
    ValueError
        For a context or a perturbation that training did not have, and a context without controls.
    """
    draws, cells, seed = checked_int("draws", draws, 2), checked_int("cells", cells, 1), checked_seed(seed)
    dose = checked_real("dose", dose, at_least=0)
    screen = read_screen(fitted, data)
    asked = _asked(screen, pairs)
    scale, levels = screen.levels()
    n_cells, names = screen.n_cells, screen.genes(levels.shape[-1])
    rows, diagnostics = [], []
    for number, (context, label, codes) in enumerate(asked):
        column = screen.labels.index(label) if label in screen.labels else None
        control = _controls(screen, context)
        drawn = _responses(screen, context, codes, dose, (draws, cells), stream(seed, "pair", number))
        response, (low, high) = drawn.mean(0), np.quantile(drawn, INTERVAL, axis=0)
        base = levels[context, control]
        there = column is not None and n_cells[context, column] > 0
        observed = levels[context, column] - base if there else np.full_like(base, np.nan)
        additive = _additive(levels, n_cells, context, control, column)
        rows.append(
            pd.DataFrame(
                {
                    "context": screen.contexts[context],
                    "perturbation": label,
                    "gene": names,
                    "control": base,
                    "response": response,
                    "low": low,
                    "high": high,
                    "additive": additive,
                    "observed": observed,
                }
            )
        )
        diagnostics.append(
            {
                "context": screen.contexts[context],
                "perturbation": label,
                "n_cells": int(n_cells[context, column]) if column is not None else 0,
                "extrapolated": _extrapolated(screen, context, codes),
                "r2": explained(observed, response),
                "r2_additive": explained(observed, additive),
                "r2_no_effect": explained(observed, np.zeros_like(base)),
            }
        )
    notes = [
        "Networks and what was learnt of the pairs that were seen are taken as known: intervals hold what is not known "
        "of pairs that were not, and which cells there are.",
        "'additive' is the mean response of the other contexts in the data; R2 is of the response, not of the level.",
    ]
    settings = {"scale": scale, "dose": dose, "draws": draws, "cells": cells, "seed": seed}
    table = pd.concat(rows, ignore_index=True)
    return Decision(table, pd.DataFrame(diagnostics), settings, tuple(notes), response_scatter)


def explained(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Return R2 over genes of a response: 1 minus squared errors over those of the mean; NaN where none is observed."""
    if np.isnan(observed).any() or np.isnan(predicted).any():
        return np.nan
    total = ((observed - observed.mean()) ** 2).sum()
    return float(1 - ((observed - predicted) ** 2).sum() / total) if total > 0 else np.nan


def _asked(screen: Screen, pairs: Any) -> list[tuple[int, str, np.ndarray]]:
    """Context, label and codes of each pair."""
    if pairs is None:
        treated = [(label, codes) for label, codes in zip(screen.labels, screen.codes, strict=True) if label != CONTROL]
        return [(c, label, codes) for c in range(len(screen.contexts)) for label, codes in treated]
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs is a list of contexts and perturbations, [(context, perturbation)], not {pairs!r}")
    asked = []
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"pairs: {pair!r} is no pair of a context and a perturbation")
        context, perturbation = pair
        label, codes = screen.label_of("pairs", perturbation)
        if label == CONTROL:
            raise ValueError(f"pairs: {perturbation!r} is a control: there is no response to it")
        asked.append((find_label("pairs", context, screen.contexts, "context"), label, codes))
    if not asked:
        raise ValueError("pairs names no pair")
    return asked


def _controls(screen: Screen, context: int) -> int:
    """The column of the controls, of which the context has some."""
    if CONTROL in screen.labels and screen.n_cells[context, screen.labels.index(CONTROL)]:
        return screen.labels.index(CONTROL)
    raise ValueError(
        f"context {screen.contexts[context]!r} has no control cell in the data: there is nothing to respond from"
    )


def _extrapolated(screen: Screen, context: int, codes: np.ndarray) -> bool:
    """Whether something is not known of the latents of a pair, as it was not trained on."""
    batch = {k: v.to(screen.fitted.device) for k, v in screen.dataset.batch(np.array([0])).items()}
    program: Any = screen.fitted.program.eval()
    with torch.no_grad():
        laws = program.laws(conditioned(screen, batch, context, codes, 1.0))
    return any(bool((law.unknown > 0).any()) for law in laws.values())


def _additive(levels: np.ndarray, n_cells: np.ndarray, context: int, control: int, column: int | None) -> np.ndarray:
    """The mean response [G] of the other contexts that have the pair and controls."""
    if column is None:
        return np.full(levels.shape[-1], np.nan)
    others = (n_cells[:, column] > 0) & (n_cells[:, control] > 0) & (np.arange(len(levels)) != context)
    if not others.any():
        return np.full(levels.shape[-1], np.nan)
    return (levels[others, column] - levels[others, control]).mean(0)


def _responses(
    screen: Screen, context: int, codes: np.ndarray, dose: float, sizes: tuple[int, int], seed: int
) -> np.ndarray:
    """Draws of the response of each gene [S, G]."""
    fitted, (draws, cells) = screen.fitted, sizes
    program: Any = fitted.program
    rng = np.random.default_rng(seed)
    pool = np.flatnonzero((screen.context == context) & (screen.label == _controls(screen, context)))
    responses = []
    for draw in range(draws):
        rows = np.sort(rng.choice(pool, cells))
        batch = {name: v.to(fitted.device) for name, v in screen.dataset.batch(rows).items()}
        latents = encoded(fitted, batch, stream(seed, "encoding", draw))
        means = []
        for given in (np.array([-1]), codes):
            changed = conditioned(screen, batch, context, given, dose)
            drawn = {site: latents[site] for site in program.kept if site in latents}
            with torch.no_grad():
                laws = program.laws(changed)
            generator = np.random.default_rng(stream(seed, "latents", draw))
            for site, law in laws.items():
                cell = torch.as_tensor(generator.standard_normal(tuple(law.loc.shape))).to(law.loc)
                pair = torch.as_tensor(generator.standard_normal(law.loc.shape[-1])).to(law.loc)
                if site not in drawn:
                    drawn[site] = law.loc + law.unknown * pair + law.scale * cell
            site, values = expected_values(fitted, changed, stream(seed, "decoding", draw), drawn)
            mean = values.double().mean(0).cpu().numpy()
            means.append(np.log2(mean + PSEUDO) if site == PROPORTIONS else mean)
        responses.append(means[1] - means[0])
    return np.stack(responses)
