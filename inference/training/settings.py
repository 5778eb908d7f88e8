"""How a program is trained: the settings that `fieldguide.inference.fit` and `Fit.refit` have in common."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fieldguide.inference.checks.arguments import (
    checked_flag,
    checked_int,
    checked_real,
    checked_seed,
    plain_value,
    set_fields,
)
from fieldguide.inference.checks.files import check_output, checked_path
from fieldguide.inference.entry import Defaults
from fieldguide.inference.program import Program

Callback = Callable[[Program, dict[str, Any]], bool | None]


@dataclass(frozen=True)
class Settings:
    """Settings of one training; what each means stands in `fieldguide.inference.fit`.

    The defaults of ``learning_rate`` and ``epsilon`` are as published for scVI.
    """

    max_epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    epsilon: float = 0.01
    cooldown: float = 0.0
    seed: int = 0
    early_stopping: Any = 30
    kl_warmup: int = 0
    compile: bool = False
    callbacks: Iterable[Callback] = ()
    checkpoint: str | Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        path = None if self.checkpoint is None else _place(self.checkpoint)
        stopping = plain_value(self.early_stopping)
        stopping = None if stopping is False else stopping
        set_fields(
            self,
            max_epochs=checked_int("max_epochs", self.max_epochs, 1),
            batch_size=checked_int("batch_size", self.batch_size, 1),
            learning_rate=checked_real("learning_rate", self.learning_rate, above=0),
            epsilon=checked_real("epsilon", self.epsilon, above=0),
            cooldown=checked_real("cooldown", self.cooldown, at_least=0, at_most=1),
            seed=checked_seed(self.seed),
            early_stopping=None if stopping is None else checked_int("early_stopping", stopping, 1),
            kl_warmup=checked_int("kl_warmup", self.kl_warmup, 0),
            compile=checked_flag("compile", self.compile),
            callbacks=_callbacks(self.callbacks),
            checkpoint=path,
            progress=checked_flag("progress", self.progress),
        )

    @classmethod
    def of(
        cls, defaults: Defaults, given: Mapping[str, Any], otherwise: Mapping[str, Any] = MappingProxyType({})
    ) -> "Settings":
        """Return the settings as given; where that is None, the entry's own, or else those of ``otherwise``."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            said = f"unexpected keyword argument '{unknown[0]}': the settings of training are {', '.join(known)}"
            raise TypeError(said)
        asked = {name: value for name, value in given.items() if value is not None or name == "early_stopping"}
        own = {name: value for name, value in vars(defaults).items() if value is not None and name != "validation"}
        return cls(**{**otherwise, **own, **asked})


def for_several(function: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of several fits: what can be read once only becomes a tuple.

    Raises
    ------
    TypeError
        For a checkpoint, which each fit would write over.
    """
    if settings.get("checkpoint") is not None:
        raise TypeError(f"checkpoint is no setting of {function}: each of its fits would write over it")
    listed = {name: settings[name] for name in ("callbacks", "constraints") if name in settings}
    many = {name: tuple(v) if isinstance(v, Iterator) else v for name, v in listed.items()}
    return {**settings, **many}


def _callbacks(callbacks: Any) -> tuple[Callback, ...]:
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a list of callables, not {callbacks!r}")
    callbacks = tuple(callbacks)
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks must be callables of the program and a row of the history, not {callback!r}")
    return callbacks


def _place(checkpoint: Any) -> Path:
    try:
        return check_output(checked_path("checkpoint", checkpoint))
    except OSError as error:
        raise type(error)(f"checkpoint: {error}") from None
