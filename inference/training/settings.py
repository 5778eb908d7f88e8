"""How a program is trained: the settings that `fieldguide.inference.fit` and `Fit.refit` have in common."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
    early_stopping: int | None = 30
    kl_warmup: int = 0
    compile: bool = False
    callbacks: Iterable[Callback] = ()
    checkpoint: str | Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "callbacks", tuple(self.callbacks))
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown must be a share in [0, 1], not {self.cooldown}")
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

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
