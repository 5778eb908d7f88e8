"""How errors name a row or a column."""

import numpy as np
import pandas as pd


def named(index: pd.Index, place: int | np.integer) -> str:
    """Return the name at a place of an index, as Python writes it.

    Examples
    --------
    >>> named(pd.Index([3, 5]), 1), named(pd.Index(["ann"]), 0)
    ('5', "'ann'")
    """
    value = index[int(place)]
    return repr(value.item() if isinstance(value, np.generic) else value)
