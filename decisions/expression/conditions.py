"""What cells are decoded under, so that they are compared at equal terms: the same batches, the same quality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fieldguide.decisions.cells import numbered
from fieldguide.inference.checks.labels import find_label
from fieldguide.inference.posterior import Posterior

FIELD = "batch"


@dataclass(frozen=True)
class Conditions:
    """What cells are decoded under, by default the conditions of each cell itself.

    Attributes
    ----------
    batches : list of int, optional
        Codes of the batches to average over; None leaves each cell in its own.
    redrawn : tuple of str
        Latent sites to draw anew from their prior and average over.
    """

    batches: list[int] | None = None
    redrawn: tuple[str, ...] = ()


def read_conditions(
    posterior: Posterior,
    batch: bool | str | Sequence | None,
    nuisance: bool | str | Sequence[str] | None,
    argument: str,
) -> Conditions:
    """Return the conditions that a user asked for.

    Parameters
    ----------
    posterior : Posterior
    batch : bool, label or list of labels, optional
        Batches to decode under; None means all of them where there are several, False each cell's own.
    nuisance : bool, site or list of sites, optional
        Latent sites to draw anew. None means those that the program declares (``Program.nuisance``), True the same, and
        an error where there are none; False leaves every cell its own values.
    argument : str
        The user's name for ``batch``, for errors.

    Raises
    ------
    ValueError
        Naming the argument: the program has no batches, or none of that label; it declares no such site, has no latent
        of that name, or would keep none.
    """
    return Conditions(_batch_codes(posterior, batch, argument), _redrawn_sites(posterior, nuisance))


def _batch_codes(posterior: Posterior, wanted: bool | str | Sequence | None, argument: str) -> list[int] | None:
    if wanted is False:
        return None
    if FIELD not in posterior.dataset.stores:
        if wanted is None:
            return None
        raise ValueError(f"{argument}: the program was fitted without a field '{FIELD}'")
    if posterior.schema is not None:
        labels = list(posterior.schema.states[FIELD]["categories"])
    else:
        rows = np.arange(posterior.n_cells)
        labels = numbered(int(posterior.dataset.stores[FIELD].gather(rows).max()) + 1)
    if wanted is None or wanted is True:
        return list(range(len(labels))) if len(labels) > 1 else None
    chosen = [wanted] if np.ndim(wanted) == 0 else list(wanted)
    if not chosen:
        raise ValueError(f"{argument} is an empty list of batches")
    return [find_label(argument, label, labels, "batch") for label in chosen]


def _redrawn_sites(posterior: Posterior, wanted: bool | str | Sequence[str] | None) -> tuple[str, ...]:
    if wanted is None or wanted is False:
        return () if wanted is False else posterior.nuisance
    if wanted is True:
        if not posterior.nuisance:
            raise ValueError("nuisance=True: the program declares no latent site of technical quality")
        return posterior.nuisance
    if not isinstance(wanted, str) and not isinstance(wanted, list | tuple | set):
        raise TypeError(f"nuisance must be True, False, a latent site or a list of them, not {wanted!r}")
    chosen = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    latents = posterior.latents
    for name in chosen:
        if name not in latents:
            raise ValueError(f"nuisance: no latent site {name!r}; there are {', '.join(latents)}")
    if set(latents) <= set(chosen):
        raise ValueError("nuisance draws every latent site anew: nothing of the cells would be left")
    return chosen
