"""What a program reads from the user's data: named fields, where they live, and what was learnt of them.

A `Schema` names the fields. Fitted on one data set (`Schema.learn`) it remembers categories, gene names
and scales, and applies them unchanged to new data, so that a mistake is an error with a name and not a wrong number.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fieldguide.inference.data.fields import Field
from fieldguide.inference.data.reading import SchemaError, is_present
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

    def learn(self, data, places: Mapping[str, Any] | None = None) -> "FittedSchema":
        """Check ``data`` and remember what new data will have to match.

        Parameters
        ----------
        data : AnnData, DataFrame or dict of arrays
        places : mapping of str to str or list of str, optional
            Where a field lives, when it is not at its default place; None for a field switches it off.

        Raises
        ------
        SchemaError
            Naming the field and the cell, gene or column that does not fit.
        """
        places = dict(places or {})
        unknown = sorted(set(places) - set(self.fields))
        if unknown:
            raise SchemaError(f"no field '{unknown[0]}'; this program reads {', '.join(self.fields)}")
        used: dict[str, Any] = {}
        for name, field in self.fields.items():
            place = places.get(name, field.place)
            if name in places and place is None and not field.optional:
                raise SchemaError(f"field '{name}' cannot be switched off")
            absent = not place or (name not in places and field.optional and not is_present(data, place))
            if not absent:
                used[name] = place
        states = {name: self.fields[name].learn(name, data, place) for name, place in used.items()}
        return FittedSchema(self, used, states)


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
        return {n: self.schema.fields[n].read(n, data, p, self.states[n]) for n, p in self.places.items()}

    def sizes(self) -> dict[str, Any]:
        """Return the constructor arguments that the data implies."""
        implied: dict[str, Any] = {}
        for name, state in self.states.items():
            implied |= self.schema.fields[name].sizes(name, state)
        return implied

    def describe(self) -> dict[str, Any]:
        """Return places and states as JSON values, for checkpoints."""
        kinds = {n: {"kind": type(f).__name__, **asdict(f)} for n, f in self.schema.fields.items()}
        return {"fields": kinds, "places": self.places, "states": self.states}
