"""What every test shares: checked annotations, repeatable random examples, one thread, and the embedded data."""

import os

import beartype
import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

# Before anything imports the package: annotated calls in it are checked while the tests run. An int passes for a float,
# and a number of NumPy for one of Python, as users give both.
beartype.numbers = beartype.BeartypeConf(
    hint_overrides=beartype.FrozenDict(
        {
            bool: bool | np.bool_,
            int: int | np.integer,
            float: float | int | np.floating | np.integer,
            complex: complex | float | int | np.number,
        }
    )
)
jaxtyping.install_import_hook("fieldguide", "beartype.beartype(conf=beartype.numbers)")

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)
hypothesis.settings.register_profile("fieldguide", max_examples=60, derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fieldguide")


@pytest.fixture
def pbmc():
    """The 700 embedded blood cells, read anew for each test, so that a test may change them."""
    from fieldguide.catalog.data import pbmc68k_700

    return pbmc68k_700()
