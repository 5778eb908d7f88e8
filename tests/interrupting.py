"""Interrupt, kill or starve what writes files, at random moments, and see what is left.

One process imports everything and forks for each trial, so that a hundred moments take seconds and not hours:

    python tests/interrupting.py fit --signal INT --trials 100 --seed 0

prints a line of JSON: how the trials ended, and what was wrong with each that was not right. Right is: the exit code of
the signal, or 0 where the work was done before it; no traceback; the older file there whole, or the new one whole; and
nothing else in the folder, or after a kill at most hidden parts, which the next run clears away.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch

from fieldguide import inference
from fieldguide.catalog import learn_policy
from fieldguide.cli import main
from fieldguide.decisions import BanditLog
from fieldguide.reports.complete_folder import complete_folder

TINY = ["--max-epochs", "12", "--model", "n_hidden=8", "n_latent=2"]
COMMANDS = {
    "fit": ["fit", "scvi", "cells.h5ad", "--output", "out", *TINY],
    "de": ["de", "fit", "cells.h5ad", "--groupby", "kind", "--group", "a", "--draws", "20", "--output", "out"],
    "join": ["join", "one=cells.h5ad", "two=other.h5ad", "--output", "out"],
    "impute": ["impute", "imputer", "joined.h5ad", "--draws", "5", "--output", "out"],
    "compare": [
        *[
            "compare",
            "scvi",
            "cells.h5ad",
            "--output",
            "out",
            "--overwrite",
            "--draws",
            "30",
            "--posterior-draws",
            "10",
        ],
        *["--groupby", "kind", "--group", "a", "--objectives", "elbo", "iwae", *TINY, "--max-epochs", "2"],
    ],
    "allocate": ["allocate", "reward.csv", "cost.csv", "900", "--integer", "--output", "out", "--report", "page"],
    "evaluate": ["policy", "evaluate", "log.csv", "logging.csv", "--output", "out", "--report", "page"],
    "learn": ["policy", "learn", "log.csv", "context.csv", "logging.csv", "--output", "out", "--max-epochs", "3"],
}
OUTPUTS = ("out", "page")


def prepare(folder: Path) -> None:
    """Write small inputs of every command."""
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(150)]
    counts = rng.poisson(2.0, (150, 12)).astype(np.float32) + 1
    cells = anndata.AnnData(counts, obs=pd.DataFrame({"kind": list("ab") * 75}, index=names))
    cells.write_h5ad(folder / "cells.h5ad")
    cells[:, :9].copy().write_h5ad(folder / "other.h5ad")
    rows = pd.Index([f"r{i}" for i in range(400)])
    options = [f"o{k}" for k in range(4)]
    pd.DataFrame(np.sort(rng.random((400, 4)), 1), index=rows, columns=options).to_csv(folder / "reward.csv")
    pd.DataFrame([[0, 1, 2, 4]], columns=options).to_csv(folder / "cost.csv")
    action = rng.integers(4, size=400)
    log = {"action": np.array(options)[action], "reward": (rng.random(400) < 0.5) * 1.0, "propensity": 0.25}
    pd.DataFrame(log, index=rows).to_csv(folder / "log.csv")
    pd.DataFrame([[0.25] * 4], columns=options).to_csv(folder / "logging.csv")
    pd.DataFrame(rng.normal(size=(400, 3)), index=rows).to_csv(folder / "context.csv")
    table = {"x": rng.normal(size=(200, 6))}
    np.save(folder / "x.npy", table["x"])
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None), contextlib.chdir(folder):
        inference.fit("scvi", cells, max_epochs=2, n_hidden=8, n_latent=2, progress=False).save("fit")
        joined = inference.join_modalities({"one": cells, "two": cells[:, :9].copy()})
        joined.write_h5ad("joined.h5ad")
        inference.fit("gimvi", joined, max_epochs=1, n_hidden=8, n_latent=2, progress=False).save("imputer")


def command(name: str) -> Callable[[], int]:
    """Return the command as a function of no arguments that returns an exit code."""
    return lambda: main(COMMANDS[name])


def _large() -> inference.Fit:
    table = {"x": np.tile(np.load("x.npy")[:20], (1, 7000))}  # 42,000 columns: 4 MB, so that writing takes a while
    return inference.fit("ppca", table, n_latent=10, max_epochs=1, progress=False)


def save() -> int:
    """Save again and again."""
    fitted = _large()
    for _ in range(20):
        fitted.save("out")
    return 0


def checkpoint() -> int:
    """Train with a checkpoint after every epoch."""
    from fieldguide.inference.training import trainer

    trainer.CHECKPOINT_SECONDS = 0
    inference.fit("ppca", {"x": np.load("x.npy")}, n_latent=2, max_epochs=60, checkpoint="out", progress=False)
    return 0


def api(work: Callable[[], object]) -> Callable[[], int]:
    """Return a function of the library as a command: KeyboardInterrupt, or a fit that says so, is 130."""

    def run() -> int:
        try:
            result = work()
        except KeyboardInterrupt:
            return 130
        return 130 if getattr(result, "interrupted", False) else 0

    return run


def _fit() -> object:
    return inference.fit("ppca", {"x": np.load("x.npy")}, n_latent=2, max_epochs=60, checkpoint="out", progress=False)


def _fit_best() -> object:
    return inference.fit_best(4, "ppca", {"x": np.load("x.npy")}, n_latent=2, max_epochs=15, progress=False)


def _read(path: str) -> pd.DataFrame:
    """Read a table from text: while pandas itself reads a file, it takes an interrupt for an error of the file."""
    return pd.read_csv(StringIO(Path(path).read_text()), index_col=0)


def _learn_policy() -> object:
    table = _read("log.csv")
    log = BanditLog.read(table, actions=[f"o{k}" for k in range(4)])
    context = _read("context.csv").to_numpy()
    return learn_policy(log, context, [0.25] * 4, max_epochs=3)


def report() -> int:
    """Replace a folder of several files again and again, as two writers do."""
    for turn in range(30):
        with complete_folder("out", overwrite=True) as folder:
            for name in ("report.html", "a", "b", "c"):
                (folder / name).write_text(f"{os.getpid()} {turn}")
    return 0


WORK = {name: command(name) for name in COMMANDS}
WORK |= {"save": save, "checkpoint": checkpoint, "report": report}
WORK |= {"fit()": api(_fit), "fit_best()": api(_fit_best), "learn_policy()": api(_learn_policy)}


def whole(path: Path, older: bytes | None) -> str | None:
    """Return what is wrong with an output, if anything: it is the older one, or a new one that can be read."""
    if path.is_dir():
        names = {p.name for p in path.iterdir()}
        texts = {p.read_text() for p in path.iterdir() if p.name in "abc" or len(names) == 4}
        if "report.html" not in names or ("a" in names and (len(names) != 4 or len(texts) > 1)):
            return f"a folder with {sorted(names)} of {len(texts)} writers"
        return None
    if not path.exists():
        return None if older is None else "the older file is gone"
    content = path.read_bytes()
    if content == older:
        return None
    try:
        if content[8:9] == b"{":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                inference.load(path)
        elif content[:4] == b"\x89HDF":
            anndata.read_h5ad(path)
        elif content[:2] == b"<!":
            assert content.endswith(b"</html>\n")
        else:
            assert content.endswith(b"\n") and len(pd.read_csv(path))
    except Exception as error:
        return f"{path.name} cannot be read: {error}"
    return None


HELD = {signal.SIGINT, signal.SIGTERM}


def start(work: Callable[[], int], folder: Path) -> int:
    """Fork a process that works in a folder; return its number."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)  # what comes before the work begins waits for it
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        return process
    code = 99
    try:
        os.chdir(folder)
        said = os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 2)
        os.dup2(said, 1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        code = work()
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int:
    """Wait, and return the exit code; minus the signal of one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def trials(name: str, number: int, count: int, seed: int, writers: int = 1) -> tuple[Counter, list[str]]:
    """Interrupt the work at random moments of its length; return exit codes and what was wrong."""
    random.seed(seed)
    work, right = WORK[name], {0, -9 if number == signal.SIGKILL else 128 + number}
    if number == signal.SIGTERM:  # outside the command, before or after it, the system ends the process: 143 in a shell
        right.add(-number)
    codes, wrong = Counter(), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        inputs = {p.name: p.read_bytes() for p in folder.iterdir()}
        begin = time.monotonic()
        if (code := ended(start(work, folder))) != 0:
            return Counter({code: 1}), [f"uninterrupted: {code}: {(folder / 'stderr').read_text()}"]
        length = time.monotonic() - begin
        older = {n: (folder / n).read_bytes() for n in OUTPUTS if (folder / n).is_file()}
        for trial in range(count):
            processes = [start(work, folder) for _ in range(writers)]
            time.sleep(random.uniform(0, 1.05 * length))
            with contextlib.suppress(ProcessLookupError):
                os.kill(processes[0], number)
            sent = time.monotonic()
            found = [ended(process) for process in processes]
            late = time.monotonic() - sent
            codes.update(found[:1])
            said = (folder / "stderr").read_text() if (folder / "stderr").exists() else ""
            problems = [f"exit codes {found}"] if not set(found) <= right or any(found[1:]) else []
            problems += [p for n in OUTPUTS if (p := whole(folder / n, older.get(n)))]
            problems += ["a traceback"] if "Traceback" in said and number != signal.SIGKILL else []
            problems += [f"it took {late:.1f} s"] if late > 5 + length / 2 and writers == 1 else []
            problems += [f"{n} has changed" for n, b in inputs.items() if (folder / n).read_bytes() != b]
            left = {p.name for p in folder.iterdir()} - set(inputs) - set(OUTPUTS) - {"stderr"}
            hidden = number == signal.SIGKILL and all(n.startswith(".") for n in left)
            problems += [f"left behind: {sorted(left)}"] if left and not hidden else []
            wrong += [f"trial {trial}: {p}: {said[-300:]}" for p in problems]
        if (code := ended(start(work, folder))) != 0:
            wrong.append(f"afterwards: {code}: {(folder / 'stderr').read_text()[-300:]}")
        left = {p.name for p in folder.iterdir()} - set(inputs) - set(OUTPUTS) - {"stderr"}
        wrong += [f"the next run left {sorted(left)}"] if left else []
    return codes, wrong


def starved(name: str, sizes: list[int]) -> tuple[Counter, list[str]]:
    """Do the work on a disk (tmpfs: needs root) that has so many bytes left; return exit codes and what was wrong."""
    codes, wrong = Counter(), []
    for room in sizes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if os.system(f"mount -t tmpfs -o size=64m tmpfs {folder} 2>/dev/null"):
                return Counter({"no mount": 1}), []
            try:
                prepare(folder)
                if (code := ended(start(WORK[name], folder))) != 0:
                    wrong.append(f"with room: {code}: {(folder / 'stderr').read_text()[-300:]}")
                older = {n: (folder / n).read_bytes() for n in OUTPUTS if (folder / n).is_file()}
                page = (folder / "out" / "report.html").read_bytes() if (folder / "out").is_dir() else None
                (folder / "filling").write_bytes(bytes(max(0, shutil.disk_usage(folder).free - room)))
                code = ended(start(WORK[name], folder))
                codes[code] += 1
                problems = [p for n in OUTPUTS if (p := whole(folder / n, older.get(n)))]
                if code not in (0, 1):
                    problems.append(f"exit code {code}")
                if page is not None and code == 1 and (folder / "out" / "report.html").read_bytes() != page:
                    problems.append("the older report is gone")
                left = [p.name for p in folder.iterdir() if p.name.startswith(".")]
                problems += [f"left behind: {left}"] if left else []
                wrong += [f"{room} bytes: {p}" for p in problems]
            finally:
                os.system(f"umount {folder}")
    return codes, wrong


def run() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--signal", choices=["INT", "TERM", "KILL"], default="INT")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writers", type=int, default=1)
    parser.add_argument("--full", type=int, nargs="*", help="bytes that are left on the disk, in place of a signal")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.full:
        codes, wrong = starved(given.work, given.full)
    else:
        number = getattr(signal, f"SIG{given.signal}")
        codes, wrong = trials(given.work, number, given.trials, given.seed, given.writers)
    print(json.dumps({"work": given.work, "codes": {str(k): v for k, v in codes.items()}, "wrong": wrong}))


if __name__ == "__main__":
    sys.exit(run())
