"""Nothing is lost: Ctrl-C, SIGTERM, kill -9 and a full disk at random moments (see `tests/interrupting.py`)."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import interrupting
import pytest

SCRIPT = Path(interrupting.__file__)
MOMENTS = ["fit", "fit()", "fit_best()", "learn_policy()", "learn", "compare", "allocate"]
WRITERS = ["fit", "de", "join", "impute", "compare", "allocate", "evaluate", "learn"]


def tried(*words) -> dict[str, int]:
    """Run trials, none of which may find anything wrong; return how often they ended with each exit code."""
    run = [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, words)]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=3000)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found["work"], *words[1:], found["codes"])
    assert not found["wrong"], "\n".join(found["wrong"][:5])
    return found["codes"]


def test_a_few_moments():
    assert set(tried("fit", "--trials", 1)) <= {"0", "130"}


@pytest.mark.slow
def test_a_few_moments_of_two_writers():
    assert set(tried("report", "--signal", "KILL", "--trials", 2, "--writers", 2)) <= {"0", "-9"}


@pytest.mark.slow
@pytest.mark.parametrize("work", MOMENTS)
def test_ctrl_c_at_a_hundred_moments(work):
    assert tried(work, "--trials", 100, "--seed", 1)["130"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("work", ["fit", "compare", "learn", "allocate"])
def test_sigterm(work):
    assert tried(work, "--signal", "TERM", "--trials", 25, "--seed", 2)["143"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("work", ["save", "checkpoint"])
def test_kill_while_a_fit_is_written(work):
    assert tried(work, "--signal", "KILL", "--trials", 200, "--seed", 3)["-9"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("work", ["save", "report", "allocate"])
def test_two_writers_of_one_output(work):
    tried(work, "--signal", "KILL", "--trials", 40, "--seed", 4, "--writers", 2)
    tried(work, "--signal", "INT", "--trials", 20, "--seed", 5, "--writers", 2)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk (tmpfs) is mounted by root alone")
@pytest.mark.parametrize("work", WRITERS)
def test_a_disk_that_fills_up(work):
    codes = tried(work, "--full", 1, 4096, 12288, 20480, 40960, 65536, 131072, 262144, 1048576)
    if "no mount" in codes:
        pytest.skip("tmpfs cannot be mounted here")
    assert codes["1"] >= 1


@pytest.mark.parametrize("work", ["allocate", "evaluate", "join"])
def test_a_file_that_cannot_be_written_whole_is_not_written(work, tmp_path, monkeypatch, capsys):
    """The system refuses files of more than 300 bytes: as a full disk does, and without root."""
    interrupting.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").write_text("older")
    before = {p.name for p in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        code = interrupting.WORK[work]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 1 and said.startswith("fieldguide: error: could not write out (File too large)"), said
    assert (tmp_path / "out").read_text() == "older" and {p.name for p in tmp_path.iterdir()} == before
