"""Random numbers that are a function of a seed and a purpose, and leave the global random state as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

ONE_THREAD = RLock()
"""Pyro's stack of handlers and torch's random state belong to the process: one thread at a time."""

PURPOSES = {
    "training": (1, 0, (7919,)),
    "fresh guide": (1, 104_729, (7919,)),
    "draws": (1_000_003, 0, (1,)),
    "resampling": (1_000_003, 500_009, (1,)),
    "decoding": (1_000_003, 700_001, (1, 15_485_863)),
    "annealing": (1_000_003, 900_001, (1,)),
    "encoding": (1_000_003, 600_011, (1,)),
    "latents": (1_000_003, 400_009, (1,)),
    "pair": (1_000_033, 300_007, (7919, 15_485_863)),
}
"""Of each purpose: what the seed is multiplied by, an offset, and what the numbers that tell streams apart are."""


def stream(seed: int, purpose: str, *numbers: int) -> int:
    """Return the seed of one stream of random numbers, of those of the same purpose that ``numbers`` tell apart.

    Examples
    --------
    >>> stream(1, "draws", 2), stream(1, "fresh guide")
    (1000005, 104730)
    """
    factor, offset, steps = PURPOSES[purpose]
    place = seed * factor + offset + sum(step * number for step, number in zip(steps, numbers, strict=False))
    return place % 2**63


@contextmanager
def isolated(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Random numbers of their own, from a seed where one is given; afterwards the global state is as it was.

    Other threads wait meanwhile.
    """
    with ONE_THREAD, torch.random.fork_rng([device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield
