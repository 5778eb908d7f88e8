"""What a treatment is expected to do in a context, pairs that were never seen among them, beside plain baselines."""

from collections.abc import Iterable
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import torch

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.decoding import PROPORTIONS, encoded, expected_values
from fieldguide.decisions.perturbations.figures import response_scatter
from fieldguide.decisions.perturbations.screen import ALIKE, PSEUDO, Screen, conditioned, read_screen
from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.checks.labels import find_label
from fieldguide.inference.fitted import Fit
from fieldguide.inference.messages import caution
from fieldguide.inference.randomness import stream

INTERVAL = (0.025, 0.975)
AT_ONCE = 4096
"""Cells decoded at once."""
JUDGES, JUDGE_DRAWS = 24, 10
"""Pairs that are known, by which the error of predictions is told; and their draws."""
FIRM = 4.0
"""Pairs whose worth the error of all genes together has in that of each."""


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
    known of its latents is drawn anew each time. To this the intervals add by how much responses were missed that are
    known: up to 24 pairs of the data that the program was trained on, gene by gene. Beside it stands what needs no
    model ("additive"): the mean response of the other contexts; for a combination that no other context has, the sum of
    the responses to its parts, in the context itself or else the mean of the others.

    Parameters
    ----------
    fitted : Fit
        Of a program with contexts, perturbations and blocks of latents, such as "fcr".
    pairs : list of (context, perturbation), or DataFrame with these two columns, optional
        Combinations are written as in the data, such as "A+B". By default every context that has controls with every
        treatment of the data.
    data : optional
        Cells, among them controls of each context; the training data by default. Cells of a pair that the program was
        not trained on say how good its prediction is.
    dose : float
        As a share of the largest of each perturbation, where doses were read; what is observed is then of cells at that
        dose.
    draws, cells : int
        Draws of what is not known, and controls decoded in each of them.
    seed : int

    Returns
    -------
    Decision
        ``table``, one row a pair and gene: ``context``, ``perturbation``, ``gene``, ``control`` (observed level),
        ``response``, ``low`` and ``high`` (95 %), ``additive``, ``observed`` (NaN without cells). Responses to counts
        are log2 fold changes of mean proportions, else differences of means. Where the cells have no pair that training
        had, with controls, nothing says by how much predictions miss: low and high are NaN. ``diagnostics``, one row a
        pair:
        ``n_cells`` (in the data), ``extrapolated`` (whether training had no cell of a part of it in the context, no
        control there, or no dose as high), and R2 over the genes of the observed response: ``r2``, ``r2_additive``,
        ``r2_no_effect`` (of no response at all). ``plot`` draws the pairs.

    Raises
    ------
    TypeError
        For a fit without contexts or blocks of latents.
    ValueError
        For a context or a perturbation that training did not have, a context without controls, a dose where none were
        read, and a fit whose training ended too early.
    """
    draws, cells, seed = checked_int("draws", draws, 2), checked_int("cells", cells, 1), checked_seed(seed)
    dose = checked_real("dose", dose, at_least=0)
    screen = read_screen(fitted, data)
    if dose != 1 and not screen.has_doses:
        raise ValueError(
            f"dose={dose:g}: {fitted.name} was fitted without doses; fields={{'dose': Doses(...)}} reads them"
        )
    asked = _asked(screen, pairs)
    misfit, judges = _misfit(screen, min(cells, 50), seed)
    if not judges:
        caution(
            "intervals are missing: among these cells is no pair that training had, with controls beside it, and "
            "nothing says by how much predictions miss; pass such cells, too, as those that were trained on"
        )
    rows, diagnostics = [], []
    for context, codes in asked:
        number = crc32(repr((context, codes.tolist())).encode())  # wherever in the list a pair stands
        drawn = _responses(screen, context, codes, dose, (draws, cells), stream(seed, "pair", number))
        noise = np.random.default_rng(stream(seed, "pair", number, 1)).standard_normal(drawn.shape)
        low, high = (
            np.quantile(drawn + misfit * noise, INTERVAL, axis=0) if judges else np.full((2, drawn.shape[1]), np.nan)
        )
        response, base = drawn.mean(0), screen.level(context, screen.control)
        observed, additive = screen.response(context, codes, dose), _additive(screen, context, codes, dose)
        pair = {"context": screen.contexts[context], "perturbation": screen.name(codes)}
        of_genes = {"gene": screen.genes(len(base)), "control": base, "response": response, "low": low, "high": high}
        rows.append(pd.DataFrame({**pair, **of_genes, "additive": additive, "observed": observed}))
        scores = {"r2": response, "r2_additive": additive, "r2_no_effect": np.zeros_like(base)}
        n_cells = int(screen.n_cells[context, screen.kinds(codes, dose)].sum())
        diagnostics.append(
            {**pair, "n_cells": n_cells, "extrapolated": _extrapolated(screen, context, codes, dose)}
            | {name: explained(observed, predicted) for name, predicted in scores.items()}
        )
    unseen = sum(row["n_cells"] == 0 for row in diagnostics)
    notes = [
        f"Intervals hold what is not known of a pair that was not seen, which cells there are, and by how much "
        f"{judges} known pairs were missed; other training of the networks is not in them.",
        "'additive' is the mean response of the other contexts in the data, or the sum over the parts of a "
        "combination that none of them has; R2 is of the response, not of the level.",
    ]
    if unseen:
        at = f" at {dose:g} of the largest dose" if screen.has_doses else ""
        notes.append(f"{unseen} pairs have no cell{at} in the data: nothing is observed of them, and R2 is missing.")
    scale = "mean" if screen.observed == "values" else "log2"
    settings = {"scale": scale, "dose": dose, "draws": draws, "cells": cells, "seed": seed, "judges": judges}
    table = pd.concat(rows, ignore_index=True)
    return Decision(table, pd.DataFrame(diagnostics), settings, tuple(notes), response_scatter)


def explained(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Return R2 over genes of a response: 1 minus squared errors over those of the mean; NaN where none is observed."""
    if np.isnan(observed).any() or np.isnan(predicted).any():
        return np.nan
    total = ((observed - observed.mean()) ** 2).sum()
    return float(1 - ((observed - predicted) ** 2).sum() / total) if total > 0 else np.nan


def _asked(screen: Screen, pairs: Any) -> list[tuple[int, np.ndarray]]:
    """Context and codes of each pair."""
    has_control = screen.n_cells[:, screen.control].sum(1) > 0
    if not has_control.any():
        raise ValueError("no context has a control cell in the data: there is nothing to respond from")
    if pairs is None:
        if not has_control.all():
            without = ", ".join(repr(screen.contexts[c]) for c in np.flatnonzero(~has_control))
            caution(f"no control cell in the data of context {without}: no response there")
        if not screen.treatments():
            raise ValueError(
                "the data have no treated cell: say which pairs are asked for, pairs=[(context, perturbation), ...]"
            )
        return [(int(c), codes) for c in np.flatnonzero(has_control) for codes in screen.treatments()]
    if isinstance(pairs, pd.DataFrame):
        lacking = next((c for c in ("context", "perturbation") if c not in pairs), None)
        if lacking is not None:
            raise ValueError(f"pairs has no column {lacking!r}; it has {', '.join(map(str, pairs.columns))}")
        pairs = list(zip(pairs["context"], pairs["perturbation"], strict=True))
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs is a list of contexts and perturbations, [(context, perturbation)], not {pairs!r}")
    asked = []
    for pair in pairs:
        if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise ValueError(f"pairs: {pair!r} is no pair of a context and a perturbation")
        where, perturbation = pair
        codes = screen.codes_of("pairs", perturbation)
        if (codes < 0).all():
            raise ValueError(f"pairs: {perturbation!r} is a control: there is no response to it")
        context = find_label("pairs", where, screen.contexts, "context")
        if not has_control[context]:
            raise ValueError(f"context {where!r} has no control cell in the data: there is nothing to respond from")
        asked.append((context, codes))
    if not asked:
        raise ValueError("pairs names no pair")
    return asked


def _extrapolated(screen: Screen, context: int, codes: np.ndarray, dose: float) -> bool:
    """Whether training had no cell of a part of a pair, no control in the context, or no dose as high."""
    batch = {k: v.to(screen.fitted.device) for k, v in screen.dataset.batch(np.array([0])).items()}
    program: Any = screen.fitted.program
    tried = program.tried(conditioned(screen.fitted, batch, codes, dose, context))
    return not bool(tried.all()) or dose > 1 + ALIKE


def _additive(screen: Screen, context: int, codes: np.ndarray, dose: float) -> np.ndarray:
    """The response [G] that needs no model: of other contexts, or of the parts of a combination, added up."""
    others = _mean_of_others(screen, context, codes, dose)
    if others is not None or len(codes) < 2:
        return np.full(screen.sums.shape[-1], np.nan) if others is None else others
    total = np.zeros(screen.sums.shape[-1])
    for code in codes:
        part = screen.response(context, codes[codes == code], dose)
        if np.isnan(part).any():
            elsewhere = _mean_of_others(screen, context, codes[codes == code], dose)
            part = np.full(len(total), np.nan) if elsewhere is None else elsewhere
        total += part
    return total


def _mean_of_others(screen: Screen, context: int, codes: np.ndarray, dose: float) -> np.ndarray | None:
    """The mean response [G] of the other contexts that have the pair and controls; None without any."""
    others = [screen.response(c, codes, dose) for c in range(len(screen.contexts)) if c != context]
    known = [response for response in others if not np.isnan(response).any()]
    return np.mean(known, 0) if known else None


def _misfit(screen: Screen, cells: int, seed: int) -> tuple[np.ndarray, int]:
    """By how much the responses of known pairs are missed, gene by gene [G], and how many pairs say so."""
    known = screen.n_cells * ~screen.control * (screen.n_cells[:, screen.control].sum(1, keepdims=True) > 0)
    order = np.argsort(-known, axis=None, kind="stable")[: 4 * JUDGES]
    missed = []
    for context, kind in zip(*np.unravel_index(order, known.shape), strict=True):
        doses = screen.doses[kind][screen.codes[kind] >= 0]
        if len(missed) == JUDGES or known[context, kind] < 2 or np.ptp(doses) > 0:
            continue
        codes, dose = screen.codes[kind][screen.codes[kind] >= 0], float(doses[0])
        if not _extrapolated(screen, int(context), codes, dose):
            drawn = _responses(
                screen, int(context), codes, dose, (JUDGE_DRAWS, cells), stream(seed, "pair", len(missed), 2)
            )
            missed.append(screen.response(int(context), codes, dose) - drawn.mean(0))
    if not missed:
        return np.zeros(screen.sums.shape[-1]), 0
    squares = np.array(missed) ** 2
    return np.sqrt((squares.sum(0) + FIRM * squares.mean()) / (len(squares) + FIRM)), len(missed)


def _responses(
    screen: Screen, context: int, codes: np.ndarray, dose: float, sizes: tuple[int, int], seed: int
) -> np.ndarray:
    """Draws of the response of each gene [S, G]."""
    fitted, (draws, cells) = screen.fitted, sizes
    rng = np.random.default_rng(seed)
    pool = np.flatnonzero((screen.context == context) & screen.control[screen.kind])
    step = max(AT_ONCE // cells, 1)
    responses = []
    for begin in range(0, draws, step):
        size = min(step, draws - begin)
        rows = rng.choice(pool, size * cells)
        batch = {name: v.to(fitted.device) for name, v in screen.dataset.batch(rows).items()}
        latents = encoded(fitted, batch, stream(seed, "encoding", begin))
        noise: dict[str, Any] = {}
        levels = [
            _decoded(screen, conditioned(fitted, batch, given, dose, context), latents, noise, (size, cells), rng, seed)
            for given in (np.array([-1]), codes)
        ]
        responses.append(levels[1] - levels[0])
    return np.concatenate(responses)


def _decoded(
    screen: Screen, batch: dict, latents: dict, noise: dict, sizes: tuple[int, int], rng: Any, seed: int
) -> np.ndarray:
    """Levels of each gene [S, G] of cells whose latents follow their prior, but for those that are kept.

    ``noise`` holds the standard normal numbers of each site, of the draw [S, 1, D] and of its cells [S, n, D]: the
    control and the treatment have the same.
    """
    fitted, (draws, cells) = screen.fitted, sizes
    program: Any = fitted.program
    with torch.no_grad():
        laws = program.laws(batch)
    drawn = {site: latents[site] for site in program.kept if site in latents}
    for site, law in laws.items():
        if site not in noise:
            shape = (draws, cells, law.loc.shape[-1])
            noise[site] = [torch.as_tensor(rng.standard_normal(s)).to(law.loc) for s in ((draws, 1, shape[2]), shape)]
        if site not in drawn:
            pair, cell = noise[site]
            parts = [part.view(draws, cells, -1) for part in (law.loc, law.unknown, law.scale)]
            drawn[site] = (parts[0] + parts[1] * pair + parts[2] * cell).flatten(0, 1)
    site, values = expected_values(fitted, batch, stream(seed, "decoding"), drawn)
    mean = values.double().view(draws, cells, -1).mean(1).cpu().numpy()
    return np.log2(mean + PSEUDO) if site == PROPORTIONS else mean
