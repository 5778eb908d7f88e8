"""Every benchmark still finds what it uses of the library, and says what it does."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("peer_"))


@pytest.fixture
def importing(monkeypatch):
    """Scripts import one another by plain names, which are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported(name, importing):
    assert importing(name).__doc__, f"{name} says nothing of itself"
