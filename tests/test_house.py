"""The house as CONTRIBUTING.md draws it: no circle, no private name across files, folders and files of a size to read.

``python tests/test_house.py`` prints the figures.
"""

import ast
import tomllib
from collections import Counter
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    **{room: ROOT / room for room in ("catalog", "decisions", "inference")},
    "reports": ROOT / "src" / "fieldguide" / "reports",
}
COMMANDS = [p for p in sorted((ROOT / "src" / "fieldguide").glob("*.py"))]
LATE = {
    "fieldguide.cli": "help and mistakes of the command line appear at once, before torch is loaded",
    "fieldguide.fit_commands": "as the command line",
    "fieldguide.decision_commands": "as the command line",
    "fieldguide.policy_commands": "as the command line",
    "fieldguide.screen_commands": "as the command line",
    "fieldguide.arguments": "as the command line",
    "fieldguide.tables": "as the command line",
}
"""Files that import our own modules inside functions, and why."""
FOREIGN = {
    "_pyro_sample": "a handler of Pyro",
    "_pyro_post_sample": "a handler of Pyro",
    "_process_message": "a handler of Pyro",
    "_extended_shape": "a distribution of torch",
    "_validate_args": "a distribution of torch",
    "_validate_sample": "a distribution of torch",
    "_standard_gamma": "a draw of torch with its gradient",
    "_file": "the open file of a backed AnnData",
    "_getframe": "the frames of Python",
    "_exit": "the end of a forked process, without what its parent does at its own",
    "_repr_html_": "what notebooks show",
    "_python_dispatch": "counting the kernels of torch",
    "_params": "the parameter store of Pyro, which stock Pyro needs",
    "_make_data_loader": "the loader of scvi-tools, beside whose times ours stand",
}
"""Private names of other libraries that have no public form."""
LINES, FILES, MODEL = 400, 20, 250


def sources() -> dict[str, Path]:
    """Every module of the package by its full name."""
    modules = {}
    for room, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join(["fieldguide", room, *(part for part in parts if part != "__init__")])] = path
    modules |= {f"fieldguide.{p.stem}".removesuffix(".__init__"): p for p in COMMANDS}
    return modules


MODULES = sources()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> list[tuple[str, bool]]:
    """The modules of the package that a module imports, and whether late: inside a function."""
    inside = {
        id(node)
        for function in ast.walk(TREES[name])
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for_types = {
        id(node)
        for branch in ast.walk(TREES[name])
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    edges = []
    for node in ast.walk(TREES[name]):
        if id(node) in for_types:
            continue
        targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fieldguide"):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [module if module in MODULES else node.module for module in whole]
        edges += [(target, id(node) in inside) for target in targets if target in MODULES]
    return edges


GRAPH = nx.DiGraph()
GRAPH.add_nodes_from(MODULES)
GRAPH.add_edges_from((name, target) for name in MODULES for target, _ in imports(name) if target != name)


def circles() -> list[list[str]]:
    return [sorted(part) for part in nx.strongly_connected_components(GRAPH) if len(part) > 1]


def late() -> dict[str, int]:
    return Counter(name for name in MODULES for _, inside in imports(name) if inside)


def private(tree: ast.Module, ours: set[str]) -> list[str]:
    """Private names that a file takes from elsewhere: imported, or read from what the file does not define itself."""
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    taken = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ours:
            taken += [f"{node.lineno} {alias.name}" for alias in node.names if alias.name.startswith("_")]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if node.attr not in own | set(FOREIGN):
                taken.append(f"{node.lineno} .{node.attr}")
    return [name for name in taken if not name.endswith("__")]


def lengths() -> dict[str, int]:
    return {name: path.read_text(encoding="utf-8").count("\n") for name, path in MODULES.items()}


def fullness() -> dict[str, int]:
    return Counter(path.parent.relative_to(ROOT).as_posix() for path in MODULES.values())


def test_no_circle():
    assert not circles()


def test_contracts_name_every_system_and_every_question():
    """The lists of independent modules in pyproject.toml are complete, so that a new one is held apart as well."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    listed = {name for contract in contracts if contract["type"] == "independence" for name in contract["modules"]}
    aside = {"__init__", "declare", "likelihoods"}
    systems = {f"fieldguide.catalog.{p.stem}" for p in FOLDERS["catalog"].glob("*.py") if p.stem not in aside}
    questions = {f"fieldguide.decisions.{p.parent.name}" for p in FOLDERS["decisions"].glob("*/__init__.py")}
    assert listed == systems | questions


def test_late_imports_have_a_reason():
    assert sorted(late()) == sorted(LATE)


def test_no_private_name_crosses_a_file():
    crossing = [f"{name}:{taken}" for name, tree in TREES.items() for taken in private(tree, {"fieldguide"})]
    for path in sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        crossing += [f"{path.name}:{taken}" for taken in private(tree, {"fieldguide", "benchmarks"})]
    assert not crossing


def test_a_private_name_would_be_seen():
    tree = ast.parse(
        "from fieldguide.inference.step import _hidden\nimport fieldguide.cli as c\nc._secret\nself._x = 1\n"
    )
    assert private(tree, {"fieldguide"}) == ["1 _hidden", "3 ._secret"]


def test_a_circle_and_a_late_import_would_be_seen():
    graph = GRAPH.copy()
    graph.add_edge("fieldguide.inference.program", "fieldguide.inference.fitted")
    assert any(len(part) > 1 for part in nx.strongly_connected_components(graph))
    assert late()["fieldguide.policy_commands"] > 5


def test_files_and_folders_can_be_read():
    assert not {name: n for name, n in lengths().items() if n > LINES}
    scripts = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert not [path.name for path in scripts if path.read_text(encoding="utf-8").count("\n") > LINES]
    assert not {folder: n for folder, n in fullness().items() if n > FILES}
    assert lengths()["fieldguide.catalog.dcdfg"] < MODEL


def test_nothing_hides_a_module():
    """A function or class that a package hands out under the name of a module in it makes that module unreachable."""
    hidden = []
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            beside = {p.stem for p in path.parent.glob("*.py")} | {p.name for p in path.parent.iterdir() if p.is_dir()}
            for node in TREES[name].body:
                if isinstance(node, ast.ImportFrom) and node.module != name:
                    hidden += [f"{name}.{a.asname or a.name}" for a in node.names if (a.asname or a.name) in beside]
    assert not hidden


def test_no_line_is_exempt_from_its_format():
    exempt = [name for name, path in MODULES.items() if "fmt: skip" in path.read_text(encoding="utf-8")]
    assert not exempt


if __name__ == "__main__":
    longest = max(lengths().items(), key=lambda item: item[1])
    fullest = max(fullness().items(), key=lambda item: item[1])
    print(f"modules {len(MODULES)}, imports {GRAPH.number_of_edges()}, circles {circles() or 0}")
    print(f"late imports {sum(late().values())} in {len(late())} files: {', '.join(sorted(late()))}")
    crossing = {name: private(tree, {"fieldguide"}) for name, tree in TREES.items()}
    print(f"private names across files: {sum(map(len, crossing.values()))}", {k: v for k, v in crossing.items() if v})
    print(f"longest file {longest[0]} ({longest[1]} lines), fullest folder {fullest[0]} ({fullest[1]} files)")
    rooms = {room: sum(n for k, n in lengths().items() if k.startswith(f"fieldguide.{room}")) for room in FOLDERS}
    print("lines", rooms, "together", sum(rooms.values()))
