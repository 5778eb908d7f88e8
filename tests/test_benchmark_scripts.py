"""Every benchmark still finds what it uses of the library, says what it does, and has its place in the list."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for p in (ROOT / "benchmarks").rglob("*.py") if not p.stem.startswith(("peer_", "__")))
SCRIPTS = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]


@pytest.fixture
def importing(monkeypatch):
    """Scripts import one another as they do in the checkout, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        sys.modules.pop(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported(name, importing):
    text = importing(name).__doc__
    assert text, f"{name} says nothing of itself"
    assert "python benchmarks/" not in text, f"{name}: run as python -m {name}"


def test_names_are_unique_and_listed():
    """A name is enough to find a script, in the list of benchmarks/README.md too."""
    names = [path.name for path in FILES]
    assert len(set(names)) == len(names)
    listed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in names if f"`{name}`" not in listed and f"/{name}`" not in listed]
