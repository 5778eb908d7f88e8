"""Generated cases: a short run of each seed, with the limits of `generated/run.py`; long ones are slow.

They run in a process of their own, where annotations are not checked: what is refused is refused by the package.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SHORT, LONG = 400, 10_000


def run(seed: int, cases: int, *more: str) -> str:
    """Judge so many cases; fail with the tally and with what is wrong."""
    words = [sys.executable, str(TESTS / "generated" / "run.py"), "--seed", str(seed), "--cases", str(cases), *more]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-10_000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_a_short_run_is_without_a_fault():
    said = run(15, SHORT, "--strict")
    assert f"{SHORT} cases" in said


@pytest.mark.slow
@pytest.mark.parametrize("seed", [101, 202, 303])
def test_a_long_run_keeps_within_the_limits(seed):
    said = run(seed, LONG)
    assert f"{LONG} cases" in said
