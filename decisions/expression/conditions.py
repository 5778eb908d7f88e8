"""Which batches a comparison is decoded under."""

from collections.abc import Sequence

import numpy as np

from fieldguide.inference.posterior import Posterior

FIELD = "batch"


def batch_codes(posterior: Posterior, wanted: bool | str | Sequence | None, argument: str) -> list[int] | None:
    """Return the codes of batches to average over; None leaves each cell in its own batch.

    Parameters
    ----------
    wanted : bool, label or list of labels, optional
        None means all batches where there are several.
    argument : str
        Name of the user's argument, for errors.

    Raises
    ------
    ValueError
        When the program has no batches, or none of that label.
    """
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
        labels = [str(code) for code in range(int(posterior.dataset.stores[FIELD].gather(rows).max()) + 1)]
    if wanted is None or wanted is True:
        return list(range(len(labels))) if len(labels) > 1 else None
    chosen = [wanted] if isinstance(wanted, str | int) else list(wanted)
    if not chosen:
        raise ValueError(f"{argument} is an empty list of batches")
    for label in chosen:
        if str(label) not in labels:
            raise ValueError(f"{argument}: no batch {label!r}; batches are {', '.join(labels)}")
    return [labels.index(str(label)) for label in chosen]
