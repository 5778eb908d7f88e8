"""What a program reads from the user's data: named fields, where they live, and what was learnt of them.

A `Schema` names the fields. Fitted on one data set (`Schema.learn`) it remembers categories, gene names
and scales, and applies them unchanged to new data, so that a mistake is an error with a name and not a wrong number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.inference.checks.arguments import checked_int
from fieldguide.inference.data.fields import Field
from fieldguide.inference.data.reading import SchemaError, check_data, check_lengths, is_present, listed
from fieldguide.inference.data.storage import Store


class Schema:
    """The named fields that a program reads.

    Parameters
    ----------
    **fields : Field
        The key is the name of the field in a minibatch.

    Examples
    --------
    >>> from fieldguide.inference import Category, Counts
    >>> schema = Schema(counts=Counts(), batch=Category("batch", optional=True))
    >>> sorted(schema.fields)
    ['batch', 'counts']
    """

    def __init__(self, **fields: Field) -> None:
        self.fields = fields

    def learn(self, data, places: Any = None) -> "FittedSchema":
        """Check ``data`` and remember what new data will have to match.

        Parameters
        ----------
        data : AnnData, DataFrame or dict of arrays
        places : mapping of str to str, list of str or Field, optional
            Where a field lives, when it is not at its default place: a column, several, or a matrix. A field of the
            same kind says besides how it is read, such as ``Targets("guide", separator="+")``; None switches it off.

        Raises
        ------
        SchemaError
            Naming the field and the cell, gene or column that does not fit.
        """
        check_data(data)
        if places is not None and not isinstance(places, Mapping):
            raise TypeError(
                f"fields must be a mapping from fields to places, such as {{'{next(iter(self.fields), 'x')}': 'X'}}, "
                f"not {places!r}"
            )
        places = dict(places or {})
        unknown = sorted(map(str, set(places) - set(self.fields)))
        if unknown:
            raise SchemaError(f"no field '{unknown[0]}'; this program reads {', '.join(self.fields)}")
        fields, used = dict(self.fields), {}
        for name, field in self.fields.items():
            if name in places:
                fields[name], place = _given(name, field, places[name])
            else:
                place = field.place if field.place and (not field.optional or is_present(data, field.place)) else None
            if place is not None:
                used[name] = place
        if not used:
            raise SchemaError(f"the data has nothing that is read: {', '.join(fields)}")
        check_lengths(data, used)
        states = {}
        for name, place in used.items():
            states[name] = fields[name].learn(name, _for_field(name, data, used), place)
        for name, place in used.items():
            states[name] |= fields[name].relate(name, data, place, used)
        return FittedSchema(Schema(**fields), used, states)


def _given(name: str, field: Field, place: Any) -> tuple[Field, Any]:
    """The field as its user wants it, and its place as text or a list of text."""
    if place is None:
        if not field.optional:
            raise SchemaError(f"field '{name}' cannot be switched off")
        return field, None
    if isinstance(place, Field):
        if type(place) is not type(field):
            raise SchemaError(f"field '{name}' is of the kind {type(field).__name__}, not {type(place).__name__}")
        return field.as_given(place), place.place or field.place
    if isinstance(place, str | int | np.integer) and not isinstance(place, bool):
        columns: Any = str(place)
    elif isinstance(place, Iterable) and not isinstance(place, bytes | Mapping | pd.DataFrame):
        columns = [str(column) for column in place]
    else:
        columns = None
    if not columns:
        raise SchemaError(
            f"field '{name}' is read from a column of obs, from several ([...]), or a matrix at 'X', 'layers/NAME' or "
            f"'obsm/NAME', not from {place!r}" + ("; None switches it off" if field.optional else "")
        )
    return field, columns


def _for_field(name: str, data: Any, places: Mapping[str, Any]) -> Any:
    """The data for a field; of a frame that it reads whole, without the columns that other fields read."""
    if places[name] != "X" or not isinstance(data, pd.DataFrame):
        return data
    others = {c for other, at in places.items() if other != name and at != "X" for c in listed(at)}
    return data.loc[:, [str(column) not in others for column in data.columns]]


@dataclass
class FittedSchema:
    """A schema with what it learnt from the training data.

    Attributes
    ----------
    places : dict
        Where each field in use lives.
    states : dict
        Categories, gene names and scales of each field, as plain JSON values.
    """

    schema: Schema
    places: dict[str, Any]
    states: dict[str, dict[str, Any]]

    def read(self, data) -> dict[str, Store]:
        """Return the checked values of every field for (new) data; raises SchemaError when they do not fit."""
        check_data(data)
        check_lengths(data, self.places)
        stores = {
            name: self.schema.fields[name].read(name, _for_field(name, data, self.places), place, self.states[name])
            for name, place in self.places.items()
        }
        for name, place in self.places.items():
            self.schema.fields[name].compare(name, data, place, self.places, self.states[name])
        return stores

    def sizes(self) -> dict[str, Any]:
        """Return the constructor arguments that the data implies."""
        implied: dict[str, Any] = {}
        for name, state in self.states.items():
            implied |= self.schema.fields[name].sizes(name, state)
        return implied

    def check_sizes(self, implied: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Raise ValueError for a size given by hand that contradicts the data, naming it and the field."""
        for name, field in self.schema.fields.items():
            if name not in self.states:
                if given.get(f"n_{name}") not in (None, 0, 1):
                    raise ValueError(f"n_{name}={given[f'n_{name}']} is given, but the data have no field '{name}'")
                continue
            for size in field.sizes(name, self.states[name]).keys() & implied.keys() & given.keys():
                own, wanted = implied[size], given[size]
                if own is None or own == (tuple(wanted) if isinstance(own, tuple) and wanted else wanted):
                    continue
                larger = field.expandable and isinstance(own, int) and checked_int(size, wanted) > own
                if not larger:
                    raise ValueError(f"{size} is {own!r:.60} by the field '{name}' of the data, not {wanted!r:.60}")

    def describe(self) -> dict[str, Any]:
        """Return places and states as JSON values, for checkpoints."""
        kinds = {n: {"kind": type(f).__name__, **asdict(f)} for n, f in self.schema.fields.items()}
        return {"fields": kinds, "places": self.places, "states": self.states}
