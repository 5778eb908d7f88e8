"""The documentation tells the truth: its Python runs page by page, pages are linked, public names are in the API.

A block fenced as ``python`` runs after the blocks above it, in the names they left and in an empty working folder.
A comment on the line before a block changes that: ``<!-- no-run -->`` leaves the block out (so does the fence
``python no-run``), ``<!-- slow -->`` puts this block and those after it into a second test of the page, marked slow,
which runs the whole page.
"""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!--[ ]*(?P<comment>[\w-]+)[ ]*-->\n+)?```python(?P<info>[^\n]*)\n(?P<code>.*?)^```[ ]*$",
    re.M | re.S,
)
PUBLIC = [f"fieldguide.{name}" for name in ("catalog", "catalog.data", "inference", "decisions", "reports")]
PUBLIC += [
    f"fieldguide.{name}"
    for name in ("catalog.likelihoods", "catalog.data.simulate")
    if (ROOT / f"{name.replace('.', '/')}.py").exists()
]


def blocks(text: str) -> list[tuple[str, str]]:
    """The (mark, code) of each Python block; code keeps its line number by leading newlines, for tracebacks."""
    marked = []
    for match in FENCE.finditer(text):
        mark = "no-run" if "no-run" in match["info"] else match["comment"] or ""
        marked.append((mark, "\n" * text.count("\n", 0, match.start("code")) + match["code"]))
    return marked


def pages():
    for page in PAGES:
        marks = [mark for mark, _ in blocks(page.read_text(encoding="utf-8")) if mark != "no-run"]
        name = page.relative_to(ROOT).as_posix()
        if marks and marks[0] != "slow":
            yield pytest.param(page, False, id=name)
        if "slow" in marks:
            yield pytest.param(page, True, id=f"{name}-whole", marks=pytest.mark.slow)


def run(text: str, name: str, whole: bool) -> dict:
    """Execute the blocks of one page, up to the first slow one unless `whole`; return the names they left."""
    names = {"__name__": "__main__"}
    for mark, code in blocks(text):
        if mark == "slow" and not whole:
            break
        if mark != "no-run":
            exec(compile(code, name, "exec"), names)
    return names


@pytest.mark.parametrize("page, whole", list(pages()))
def test_the_code_of_a_page_runs(page, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page.read_text(encoding="utf-8"), str(page), whole)


def test_the_runner_itself():
    page = (
        "```python\na = 1\n```\n```text\nnot python\n```\n<!-- no-run -->\n```python\nraise 1\n```\n"
        "```python no-run\nraise 2\n```\n```bash\nls\n```\n"
        "<!-- slow -->\n\n```python\na += 1\n```\n```python\nb = a\n```\n"
    )
    assert [mark for mark, _ in blocks(page)] == ["", "no-run", "no-run", "slow", ""]
    assert run(page, "page", whole=False).get("a") == 1
    assert run(page, "page", whole=True)["b"] == 2
    with pytest.raises(ZeroDivisionError) as error:
        run("a title\n\n```python\n1 / 0\n```\n", "page", whole=False)
    assert error.traceback[-1].lineno + 1 == 4, "a traceback names the line of the page"


def linked(page: Path) -> set[Path]:
    """The pages that a page links to."""
    targets = re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets}


@pytest.mark.parametrize("start", ["README.md", "docs/index.md"])
def test_every_page_is_one_link_away(start):
    pages = {page.resolve() for page in (ROOT / "docs").rglob("*.md")}
    missed = pages - linked(ROOT / start) - {(ROOT / start).resolve()}
    assert not missed, f"link from {start}: {', '.join(sorted(page.name for page in missed))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_that_are_there(page):
    assert not [target for target in linked(page) if not target.is_file()]


def test_every_system_has_a_page_in_the_readme():
    from fieldguide.catalog import entries, get

    ours = [name for name in entries().index if get(name).program.__module__.startswith("fieldguide.catalog.")]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in ours if f"| [`{name}`](docs/" not in text]


def test_the_map_of_the_house_is_true():
    """Every file and folder that CONTRIBUTING.md names is there, but for those that are named NAME, ROOM or FOLDER."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:md|py|yml|txt)|(?:[\w.-]+/)+)`", text)
    room = ""
    for line in text.partition("```text")[2].partition("```")[0].splitlines():
        room = line.split()[0] if re.match(r"\w+/ ", line) else room
        named += [room + line.split()[0]] if re.match(r"  \w+/ ", line) else []
    assert len(named) > 60
    paths = [path for path in named if not re.search("NAME|ROOM|FOLDER", path) and path != "figures.py"]
    assert not [path for path in paths if not (ROOT / path).exists()]


def documented() -> set[str]:
    """The full names in the API pages: each ``::: name``, and ``name.member`` for each entry of its members list."""
    names, owner = set(), ""
    for page in sorted((ROOT / "docs" / "reference" / "api").glob("*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            if match := re.match(r":::\s+([\w.]+)", line):
                owner = match[1]
                names.add(owner)
            elif match := re.match(r"\s+-\s+(\w+)\s*$", line):
                names.add(f"{owner}.{match[1]}")
    return names


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_its_place_in_the_api_pages(module):
    public = {f"{module}.{name}" for name in getattr(importlib.import_module(module), "__all__", [])}
    known = documented()
    places = {name.rsplit(".", 1)[-1] for name in known}
    # A room may pass on the name of a file in it (fieldguide.inference.fit): one place in the pages is enough.
    missing = sorted(name for name in public - known if name.rsplit(".", 1)[-1] not in places)
    assert not missing, f"add to docs/reference/api/*.md: {', '.join(missing)}"


def test_docstrings_are_markdown():
    """The API pages read docstrings as Markdown, where Sphinx roles and ruled tables come out as they are typed."""
    foreign = re.compile(r":(?:class|func|mod|meth|attr|data|obj):`|^[ ]*=+ +=[= ]*$", re.M)
    places = []
    rooms = [ROOT / room for room in ("catalog", "decisions", "inference", "src/fieldguide/reports")]
    for path in (path for room in rooms for path in sorted(room.rglob("*.py"))):
        text = path.read_text(encoding="utf-8")
        places += [f"{path.name}:{text.count(chr(10), 0, m.start()) + 1}" for m in foreign.finditer(text)]
    assert not places, f"write `name` in backticks, and lists or Markdown tables: {', '.join(places)}"
