"""Every example in a docstring of the installed package runs, and prints what the docstring says.

The docstrings are read from the source, not from the objects: the annotation checks of conftest.py wrap functions, and
doctest's own search passes over wrapped ones.
"""

import ast
import doctest
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOMS = ("catalog", "decisions", "inference", "reports")
PACKAGE = Path(importlib.util.find_spec("fieldguide").origin).parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(path: Path):
    """Yield (name, text, line) for each docstring with an example in one source file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, DOCUMENTED) and ">>>" in (text := ast.get_docstring(node, clean=False) or ""):
            yield getattr(node, "name", "module"), text, node.body[0].lineno - 1


def examples():
    sources = [
        PACKAGE / "__init__.py",
        *(p for room in ROOMS for p in sorted((PACKAGE / room).rglob("*.py"))),
    ]
    for path in sources:
        parts = ("fieldguide", *path.relative_to(PACKAGE).with_suffix("").parts)
        module = ".".join(part for part in parts if part != "__init__")
        for name, text, line in docstrings(path):
            yield pytest.param(module, path, name, text, line, id=f"{module}:{name}")


@pytest.mark.parametrize("module, path, name, text, line", list(examples()))
def test_example(module, path, name, text, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(vars(importlib.import_module(module)))
    example = doctest.DocTestParser().get_doctest(text, names, name, str(path), line)
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed, tried = runner.run(example, out=report.append)
    assert tried
    assert not failed, "".join(report)
