"""fieldguide: a catalog of probabilistic models in Pyro, one inference layer, and decisions from posteriors.

The rooms are imported on first use, so that ``import fieldguide`` itself stays light:

* ``fieldguide.catalog``: the models, each a Pyro model/guide pair, and the embedded data;
* ``fieldguide.inference``: objectives, the fitting loop, posteriors;
* ``fieldguide.decisions``: differential expression and other calls made from a posterior;
* ``fieldguide.reports``: studies of several objectives, and pages to read.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "catalog", "decisions", "inference", "reports"]

if TYPE_CHECKING:
    from fieldguide import catalog, decisions, inference, reports


def __getattr__(name: str):
    if name in __all__[1:]:
        return importlib.import_module(f"fieldguide.{name}")
    raise AttributeError(f"module 'fieldguide' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
