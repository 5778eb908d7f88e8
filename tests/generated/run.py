"""Judge generated cases and print the tally: ``python tests/generated/run.py --seed 3 --cases 400 --area fields``.

Annotations are not checked here, as no user has them checked: what is refused must be refused by the package itself.
"""

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402

from generated.arguments import arguments  # noqa: E402
from generated.budgets import budgets  # noqa: E402
from generated.cases import Case, Verdict, judge  # noqa: E402
from generated.classes import classes  # noqa: E402
from generated.columns import columns  # noqa: E402
from generated.commands import commands  # noqa: E402
from generated.expression import expression  # noqa: E402
from generated.files import files  # noqa: E402
from generated.graphs import graphs  # noqa: E402
from generated.matrices import matrices  # noqa: E402
from generated.policies import policies  # noqa: E402
from generated.posteriors import posterior  # noqa: E402
from generated.screens import screens  # noqa: E402
from generated.settings import settings  # noqa: E402
from generated.world import World  # noqa: E402

AREAS = {
    "matrices": matrices,
    "columns": columns,
    "settings": settings,
    "arguments": arguments,
    "posterior": posterior,
    "expression": expression,
    "labels": classes,
    "graphs": graphs,
    "policies": policies,
    "budgets": budgets,
    "screens": screens,
    "files": files,
    "commands": commands,
}
"""Each gives its recipes."""
PER_WORLD = 1000
"""Cases that share data and fits."""
LIMITS = {
    ("invalid", "deep"): 0.005,
    ("invalid", "accepted"): 0.005,
    ("invalid", "vague"): 0.03,
    ("valid", "bad"): 0.002,
}
"""Largest shares, of the cases of their kind."""


def generated(seed: int, number: int, areas: list[str]) -> Iterator[Case]:
    """Yield so many cases: every recipe in turn, in random order, then every one again in another world."""
    order = np.random.default_rng(seed)
    all_recipes = [recipe for area in areas for recipe in AREAS[area]()]
    deck: list[int] = []
    world = None
    for k in range(number):
        if k % PER_WORLD == 0:
            if world is not None:
                shutil.rmtree(world.folder, ignore_errors=True)
            world = World(seed * 1000 + k // PER_WORLD)
        deck = deck or order.permutation(len(all_recipes)).tolist()
        yield all_recipes[deck.pop()](world)
    if world is not None:
        shutil.rmtree(world.folder, ignore_errors=True)


def shares(verdicts: list[Verdict]) -> dict[tuple[str, str], float]:
    """Return what `LIMITS` limits: outcomes of invalid cases, and valid ones that are not ok."""
    kinds = Counter(verdict.kind for verdict in verdicts)
    counted = Counter((v.kind, v.outcome if v.kind == "invalid" else "bad") for v in verdicts if v.outcome != "ok")
    return {key: counted[key] / max(kinds[key[0]], 1) for key in LIMITS}


def failures(verdicts: list[Verdict], strict: bool = False) -> list[str]:
    """Return what is over a limit, and whatever must not happen at all: with ``strict``, all but vague messages."""
    limits = {key: 0.0 if strict and key[1] != "vague" else limit for key, limit in LIMITS.items()}
    over = [
        f"{kind} {outcome}: {found:.2%} > {limits[kind, outcome]:.2%}"
        for (kind, outcome), found in shares(verdicts).items()
        if found > limits[kind, outcome]
    ]
    never = Counter(v.outcome for v in verdicts if v.outcome in ("changed", "moved", "timeout"))
    return over + [f"{outcome}: {number}" for outcome, number in never.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--area", nargs="+", default=list(AREAS), choices=list(AREAS))
    parser.add_argument("--out", type=Path, help="a JSON line for each case")
    parser.add_argument("--strict", action="store_true", help="no case may be deep, accepted or wrongly refused")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start, verdicts = time.perf_counter(), []
    with open(given.out or "/dev/null", "w", encoding="utf-8") as out:
        for case in generated(given.seed, given.cases, given.area):
            verdicts.append(judge(case))
            out.write(json.dumps(asdict(verdicts[-1])) + "\n")
            out.flush()
    for (area, kind, outcome), number in sorted(Counter((v.area, v.kind, v.outcome) for v in verdicts).items()):
        print(f"{area:12} {kind:8} {outcome:9} {number:6}")
    for (kind, outcome), found in shares(verdicts).items():
        print(f"{kind} {outcome}: {found:.2%}")
    took = time.perf_counter() - start
    print(f"{len(verdicts)} cases in {took:.0f} s, {len(verdicts) / took:.0f} a second")
    for verdict in verdicts:
        if verdict.outcome != "ok":
            print(f"  {verdict.outcome}: {verdict.name} ({verdict.area}, {verdict.kind}) {verdict.said}")
    wrong = failures(verdicts, given.strict)
    if wrong:
        print("FAILED:", "; ".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
