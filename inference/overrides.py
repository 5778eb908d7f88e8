"""Fields of a minibatch set to other values, such as every cell in one batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldguide.inference.data.schema import FittedSchema
from fieldguide.inference.data.storage import Store
from fieldguide.inference.program import Batch


def with_overrides(batch: Batch, overrides: Mapping[str, Any], schema: FittedSchema | None = None) -> Batch:
    """Return the minibatch with these fields set to a number for all cells, or to one for each.

    Parameters
    ----------
    batch : dict of str to Tensor [B, ...]
    overrides : mapping of str to number or array [B]
        Of a field of categories: their codes.
    schema : FittedSchema, optional
        Says how many categories a field has.

    Raises
    ------
    KeyError
        For a field that the program does not read.
    TypeError, ValueError
        For values that are no numbers, not whole where the field is, no category, or of another shape.
    """
    if not isinstance(overrides, Mapping):
        raise TypeError(f"overrides must be a mapping of fields to values, not {type(overrides).__name__}")
    known = sorted(set(batch) - {"index"})
    unknown = sorted(set(overrides) - set(known), key=str)
    if unknown:
        raise KeyError(f"no field '{unknown[0]}' to override; the program reads {', '.join(known)}")
    states = {} if schema is None else schema.states
    new = {}
    for name, value in overrides.items():
        categories = states.get(name, {}).get("categories")
        flat = isinstance(categories, list) and not any(isinstance(c, list) for c in categories)
        new[name] = _constant(name, value, batch[name], len(categories) if flat else None)
    return batch | new


def require_constants(overrides: Any, stores: Mapping[str, Store]) -> None:
    """Raise TypeError, naming the field, where a value is not one for all cells: those of cells go by no name."""
    for name, value in overrides.items() if isinstance(overrides, Mapping) else ():
        inner = stores[name].shape[1:] if name in stores else ()
        shape = tuple(getattr(value, "shape", (len(value),) if isinstance(value, list | tuple) else ()))
        if isinstance(value, bool | np.bool_ | pd.Series) or shape not in ((), inner):
            raise TypeError(f"overrides: field '{name}' is set to one number for all cells, not to {value!r:.60}")


def _constant(name: str, value: Any, field: Tensor, categories: int | None) -> Tensor:
    """A value as the field holds it."""
    kind = "finite" if field.is_floating_point() else "whole"
    try:
        exact = torch.as_tensor(value).to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"overrides: field '{name}' holds {kind} numbers, not {value!r}") from None
    if not torch.isfinite(exact).all() or (kind == "whole" and not torch.equal(exact, exact.round())):
        raise ValueError(f"overrides: field '{name}' holds {kind} numbers, not {value!r}")
    if categories is not None and not ((exact >= 0) & (exact < categories)).all():
        raise ValueError(f"overrides: field '{name}' has {categories} categories, numbered from 0, not {value!r}")
    try:
        return exact.to(field.device, field.dtype).expand_as(field).contiguous()
    except RuntimeError:
        shapes = f"{tuple(field.shape)}, not {tuple(exact.shape)}"
        raise ValueError(f"overrides: field '{name}' has the shape {shapes}") from None
