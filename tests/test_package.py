"""The package as a thing: light to import, hard to import wrongly, complete when built, of one version everywhere."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import jaxtyping
import pytest

import fieldguide

ROOT = Path(__file__).parents[1]
ROOMS = ("catalog", "decisions", "inference")
TOP = sorted(p for p in (ROOT / "src" / "fieldguide").glob("**/*.py") if p.relative_to(ROOT).parts[2] not in ROOMS)
SOURCES = [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))] + TOP
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DATA = [p for p in sorted((ROOT / "catalog" / "data").iterdir()) if p.is_file() and p.suffix != ".py"]


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)


def test_import_is_light(tmp_path):
    heavy = [
        "torch",
        "pyro",
        "matplotlib",
        "lightning",
        "lightning_fabric",
        "scanpy",
        "anndata",
        "arviz",
        "numpy",
        "zuko",
    ]
    done = python(f"import sys, fieldguide; print(*[m for m in {heavy} if m in sys.modules])", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_rooms_load_on_first_use(tmp_path):
    done = python(
        "import sys, fieldguide; print(fieldguide.catalog.__name__, dir(fieldguide), 'zuko' in sys.modules)",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fieldguide.catalog ")
    assert done.stdout.strip().endswith("False"), "flows are imported when a flow is built"
    assert all(room in done.stdout for room in ROOMS)
    with pytest.raises(AttributeError, match="'cellar'"):
        fieldguide.cellar  # noqa: B018


def test_annotations_are_checked_while_testing():
    """The import hook of conftest.py is at work; users do not pay for it."""
    from fieldguide.decisions import calls

    with pytest.raises(jaxtyping.TypeCheckError, match="probability"):
        calls({"a set"})
    done = python("import sys, fieldguide.catalog; print('beartype' in sys.modules, 'jaxtyping' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_a_bare_import_from_the_checkout_says_what_to_do(room):
    done = python(f"import {room}", cwd=ROOT)
    assert done.returncode != 0
    assert f"ImportError: import fieldguide.{room}, not {room}" in done.stderr


def test_one_version_everywhere():
    version = PROJECT["version"]
    assert fieldguide.__version__ == version
    assert importlib.metadata.version("fieldguide") == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_import_is_a_declared_dependency():
    """A module that is there only because another package brought it may be gone tomorrow."""
    asked_for = {"testing.py": {"hypothesis"}, "image_stacks.py": {"tifffile", "zarr"}}  # say what to install
    modules = {"pyro-ppl": "pyro", "scikit-learn": "sklearn"}
    names = [re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]]
    allowed = {modules.get(name, name.replace("-", "_")) for name in names} | {
        "fieldguide",
        *sys.stdlib_module_names,
    }
    undeclared = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            known = allowed | asked_for.get(path.name, set())
            undeclared += [f"{path.name}:{node.lineno} {n}" for n in found if n.split(".")[0] not in known]
    assert not undeclared


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert not [name for name, version in pins.items() if "+" in version], "a local build is not to be had elsewhere"
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    wanted = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    assert {re.match(r"[\w-]+", line)[0].lower() for line in wanted} <= pinned


def test_no_file_is_too_long():
    long = [p.name for p in SOURCES if p.read_text().count("\n") > 400]
    assert not long, "one idea a file, at most 400 lines"


def test_each_data_file_has_its_licence():
    text = (ROOT / "catalog" / "data" / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"\n## {path.name}\n" in text for path in DATA if path.name != "LICENSES.md")


def test_the_embedded_cells(pbmc):
    assert pbmc.shape == (700, 765)
    assert pbmc.X.dtype == "int32" and pbmc.X.min() == 0 and pbmc.X.sum() == 486_651
    assert pbmc.X.sum(0).min() > 0 and pbmc.X.sum(1).min() > 0
    assert pbmc.obs["bulk_labels"].value_counts()[["Dendritic", "CD19+ B"]].tolist() == [240, 95]


@pytest.mark.slow
def test_wheel_and_sdist_are_complete(tmp_path):
    pytest.importorskip("build", reason="the dev extra is not installed")
    skip = shutil.ignore_patterns(".*", "build", "dist", "site", "*.egg-info", "__pycache__", "tests", "benchmarks")
    shutil.copytree(ROOT, tmp_path / "checkout", symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(tmp_path / "checkout")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PIP_QUIET": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = {f"fieldguide/{p.relative_to(ROOT).as_posix()}" for p in [*SOURCES, *DATA] if p not in TOP}
    wanted |= {p.relative_to(ROOT / "src").as_posix() for p in TOP} | {"fieldguide/py.typed"}
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wanted <= names
    assert {Path(n).name for n in names if "/licenses/" in n} == {"LICENSE", "NOTICE"}
    assert {n.split("/")[0] for n in names} == {"fieldguide", f"fieldguide-{PROJECT['version']}.dist-info"}
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {m.name.split("/", 1)[-1]: m for m in archive.getmembers()}
    assert {f"src/{name}" for name in wanted} <= set(members)
    assert not [name for name, m in members.items() if m.issym()], "links break where they cannot be made"
