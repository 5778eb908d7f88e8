"""A million actions, and a million customers: memory and time.

``learn``: POXM over 10^6 actions, 50 candidates, 64 hidden units, 10^5 contexts of 64 features with five logged
actions each (random: what it costs does not depend on what it learns). Target: peak memory of the process below 2 GB;
the time of an epoch is reported. No tensor of contexts x actions would fit: one minibatch of it is 0.5 GB, the log 400
GB. ``allocate``: 10^6 customers, 10 options, one budget, in less than 10 s on two cores, with the value within 1e-9 of
the dual bound; three budgets are reported.

    python -m benchmarks.decisions.policy_scale [--parts learn allocate] [--actions 1000000] [--rows 100000]
        [--customers 1000000]

Each part runs in a process of its own, so that its peak memory is its own. With --device cuda, both run there, and the
peak of the device's memory is reported too. Published: none.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import torch

from benchmarks.common import show, verdict


def peak():
    """Peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e9


def learn(a):
    """One fit; seconds of its epochs and peak memory."""
    from fieldguide.catalog import policy_data
    from fieldguide.decisions import BanditLog
    from fieldguide.decisions.policies.policy import Policy
    from fieldguide.inference import fit

    torch.set_num_threads(a.threads)
    rng = np.random.default_rng(0)
    width, length = 50, 5
    x = rng.normal(size=(a.rows, 64)).astype(np.float32)
    centre = rng.integers(a.actions, size=(a.rows, 1))
    candidates = (centre + 997 * np.arange(width)) % a.actions
    probability = np.sort(rng.dirichlet(np.full(width, 0.5), a.rows), 1)[:, ::-1]
    place = (rng.random((a.rows, length, 1)) > probability.cumsum(1)[:, None]).sum(2).clip(max=width - 1)
    action, chance = (np.take_along_axis(table, place, 1) for table in (candidates, probability))
    names, rows = pd.RangeIndex(a.actions), pd.RangeIndex(a.rows)
    log = BanditLog.of(action, rng.random(action.shape) < 0.1, np.maximum(chance, 1e-6), names, rows)
    data = policy_data(x, Policy(candidates, probability, names, rows), log)
    before = peak()
    settings = {"n_actions": a.actions, "n_hidden": 64, "max_epochs": a.epochs, "batch_size": 128, "device": a.device}
    fitted = fit("poxm", data, validation=0.0, early_stopping=None, progress=False, **settings)
    row = {"seconds per epoch": fitted.history["seconds"].tolist(), "peak GB": peak(), "of which data": before}
    if a.device == "cuda":
        row["device GB"] = torch.cuda.max_memory_allocated() / 1e9
    return row


def spend(a):
    """Allocation of one budget and of three: seconds, certificate, peak memory."""
    from fieldguide.decisions import allocate
    from fieldguide.decisions.budgets.knapsack import solve

    torch.set_num_threads(a.threads)
    rng = np.random.default_rng(0)
    reward = np.sort(rng.random((a.customers, 10)), 1)
    cost = np.arange(10.0)
    found, row = {}, {}
    tensors = [torch.tensor(v, device=a.device) for v in (reward, np.tile(cost, (a.customers, 1)))]
    if a.device == "cuda":
        solve(tensors[0][:100], tensors[1][:100], 200.0)  # the first call compiles
        torch.cuda.synchronize()
    start = time.perf_counter()
    best = solve(*tensors, 2.0 * a.customers)
    row["solver, seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    found = allocate(reward, cost, 2.0 * a.customers)
    row["allocate, seconds"] = time.perf_counter() - start
    row |= {"gap": (best.dual - best.value) / best.value, "same": abs(best.value - found.value) / best.value}
    row["randomised"] = int(found.diagnostics["randomised"].iloc[0])
    if a.many:
        costs = {"money": np.tile(cost, (a.customers, 1)), "time": rng.random((a.customers, 10)) * (cost > 0)}
        costs["top"] = np.tile((cost > 6).astype(float), (a.customers, 1))
        budgets = {"money": 2.0 * a.customers, "time": 0.3 * a.customers, "top": 0.05 * a.customers}
        start = time.perf_counter()
        several = allocate(reward, costs, budgets)
        row["three budgets, seconds"] = time.perf_counter() - start
        row["three budgets, gap"] = float(several.diagnostics["gap"].iloc[0]) / several.value
        row["three budgets, randomised"] = int(several.diagnostics["randomised"].iloc[0])
    return row | {"peak GB": peak()}


PARTS = {"learn": learn, "allocate": spend}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    p.add_argument("--actions", type=int, default=1_000_000)
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--customers", type=int, default=1_000_000)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--many", action="store_true", help="three budgets as well (about a minute)")
    p.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.inside:
        print(json.dumps(PARTS[a.parts[0]](a)))
        return True
    ok = []
    rest = [w for w in sys.argv[1:] if w not in ("--parts", *PARTS)]
    for part in a.parts:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.decisions.policy_scale", *rest, "--inside", "--parts", part],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{part} failed:\n{done.stderr[-3000:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        size = f"{a.actions} actions, {a.rows} rows" if part == "learn" else f"{a.customers} customers"
        show(f"{part}: {size}, {a.device}, {a.threads} threads", [row])
        if part == "learn":
            ok.append(verdict(f"peak memory below 2 GB: {row['peak GB']:.2f}", row["peak GB"] < 2))
        else:
            ok.append(
                verdict(f"allocate in less than 10 s: {row['allocate, seconds']:.1f}", row["allocate, seconds"] < 10)
            )
            ok.append(verdict(f"value within 1e-9 of the dual: {row['gap']:.1e}", abs(row["gap"]) <= 1e-9))
    return all(ok)


if __name__ == "__main__":
    raise SystemExit(not main())
