"""fieldguide: a catalog of probabilistic models in Pyro, one inference layer, and decisions from posteriors.

The three rooms are imported on first use, so that ``import fieldguide`` itself stays light:

* ``fieldguide.catalog``: the models, each a Pyro model/guide pair, and the embedded data;
* ``fieldguide.inference``: objectives, the fitting loop, posteriors;
* ``fieldguide.decisions``: differential expression and other calls made from a posterior.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "catalog", "decisions", "inference"]

if TYPE_CHECKING:
    from fieldguide import catalog, decisions, inference


def __getattr__(name: str):
    if name in ("catalog", "decisions", "inference"):
        return importlib.import_module(f"fieldguide.{name}")
    raise AttributeError(f"module 'fieldguide' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
