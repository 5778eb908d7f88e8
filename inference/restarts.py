"""Several fits from other starting values, of which the one that predicts held-out cells best is kept."""

from typing import Any

import numpy.typing as npt
import pandas as pd

from fieldguide.inference.checks.arguments import checked_int, checked_seed
from fieldguide.inference.entry import as_entry
from fieldguide.inference.fitted import Fit
from fieldguide.inference.fitting import fit
from fieldguide.inference.training.settings import for_several


def fit_best(
    restarts: int, entry, data, *, seed: int = 0, validation: float | npt.ArrayLike | None = None, **settings
) -> Fit:
    """Fit several times, and return the fit with the smallest loss on the held-out cells.

    For objectives with many local optima, such as those over graphs: what chooses is the same held-out cells for all.
    They are then no longer quite held out; data for a final verdict must be others.

    Parameters
    ----------
    restarts : int
        How many fits.
    entry, data, validation
        As for `fieldguide.inference.fit`; the same cells are held out of every fit.
    seed : int
        Fit number k has ``seed + k``.
    **settings
        For `fieldguide.inference.fit`.

    Returns
    -------
    Fit
        With ``fit.restarts``, a table of the seed and the held-out loss (nats per cell, of the kept parameters, at full
        weight of the Kullback-Leibler term) of every fit.

    Raises
    ------
    ValueError
        If no cell is held out, or ``restarts`` is below 1.
    TypeError
        If ``entry`` is a program that is already built: it would go on from where the fit before ended.

    Examples
    --------
    >>> import numpy as np
    >>> x = {"x": np.random.default_rng(0).normal(size=(200, 4))}
    >>> best = fit_best(2, "ppca", x, n_latent=1, max_epochs=3, progress=False)
    >>> best.restarts["seed"].tolist(), bool(best.restarts["loss"].min() == best.held_out_loss())
    ([0, 1], True)
    """
    restarts, seed = checked_int("restarts", restarts, 1), checked_seed(seed)
    entry, settings = as_entry(entry), for_several("fit_best", settings)
    if entry.built is not None:
        raise TypeError(f"{entry.name} is already built: give its class, so that every fit starts anew")
    best: Fit | None = None
    rows: list[dict[str, Any]] = []
    for number in range(restarts):
        attempt = fit(entry, data, seed=seed + number, validation=validation, **settings)
        if attempt.interrupted:
            raise KeyboardInterrupt
        validation = attempt.validation_rows
        rows.append({"seed": seed + number, "loss": attempt.held_out_loss()})
        if best is None or rows[-1]["loss"] < min(row["loss"] for row in rows[:-1]):
            best = attempt
    assert best is not None
    best.restarts = pd.DataFrame(rows)
    return best
