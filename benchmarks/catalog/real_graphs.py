"""Causal graphs of real interventions (and of a simulator made like them): `dcdfg` and `nodags` beside public methods.

    export FIELDGUIDE_GRAPHS_PYTHON=peer/bin/python
    python -m benchmarks.catalog.real_graphs [--parts sachs dream4 melanoma papalexi]
        [--seeds 3] [--results DIR] [--peer-seconds 3600] [--small]

- ``sachs``: 11 signalling molecules, 7,466 cells in nine regimes; SHD, F1 and average precision (AP) against 18
  consensus edges. Published SHD, other rows: DCCD-CONF 18, DAG-GNN 19, DAGMA 21, NOTEARS 22.
- ``dream4``: three networks of 100 simulated genes, one steady state of each knock-out (so that genes are as many as
  samples); AP of how far a knock-out moves a gene by the edge alone: strength (of a peer: absolute weight) times how
  far the knocked-out gene itself moves. Beside them z, how far the gene does move, in its standard deviations.
- ``melanoma``: the 61 genes and the held-out regimes of `cyclic_graphs.py`, by `dcdfg`; figures of others are recorded.
- ``papalexi``: 9 knocked-out genes that are measured, and 41 others; each intervention is held out in turn, and its
  cells are predicted. NLL in nats a gene (intervened entries count as zeros), mean absolute error (MAE) over genes that
  were not intervened on, in standard deviations. A Gaussian that is blind to interventions (its targeted gene
  marginalised out), least squares of each gene on all others (MAE alone: it is no joint density), Gaussians for each
  gene, and least squares on the parents in the graphs of the public methods.

Peers, on the same rows, each in the environment that FIELDGUIDE_GRAPHS_PYTHON names: linear NOTEARS (gcastle), GES and
GIES by BIC. Where their class leaves an edge undirected, it counts in its true direction, to their advantage. One that
does not answer within ``--peer-seconds`` is left out.

Edges of `nodags` are strengths of at least 0.05, those of `dcdfg` probabilities of at least 1/2. Settings are those of
`cyclic_graphs.py` and of `causal_graphs.py`, with 6,000 steps of 256 cells (fewer where there are few), in which the
price of cycles grows by as much as it would in 400 epochs; for `dream4`,
where there is one sample for a gene, the penalty of `nodags` and the score were chosen on net 1, which is printed and
not judged. Targets: AP on Sachs and on DREAM4 (mean of nets 2 and 3) at least that of each peer (at least that of z is
wanted); on Papalexi NLL below the blind Gaussian's, by the better of our models. An MAE as low as that of least squares
is wanted: it may use a gene's effects to predict it, which an acyclic model may not.
``--small`` runs a part of everything in minutes.
"""

import argparse
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.catalog.causal_anchors import full_gaussian, loss, regression
from benchmarks.catalog.cyclic_graphs import REAL, THRESHOLD, average_precision, learn
from benchmarks.catalog.real_graph_data import dream4, melanoma, papalexi, sachs
from benchmarks.common import kept, show, verdict
from fieldguide.catalog import edge_strengths, get
from fieldguide.decisions import causal_graph, graph_scores, interventional_scores
from fieldguide.inference import Penalty, fit

PEERS = ("notears", "ges", "gies")
OURS = {  # for each part: arguments of the models
    "sachs": {
        "dcdfg, all pairs": {"rank": None},
        "dcdfg, factors": {"rank": 10},
        "nodags, linear": {},
        "nodags, tanh": {"activation": "tanh", "contraction": None},
    },
    "dream4": {
        "dcdfg, all pairs": {"rank": None, "mechanism": "linear"},
        "nodags, linear": {"sparsity": 0.3},
    },
    "melanoma": {"dcdfg, linear": {"mechanism": "linear"}, "dcdfg": {}},
    "papalexi": {
        "dcdfg, linear": {"rank": 20, "mechanism": "linear"},
        "dcdfg": {"rank": 20},
        "nodags, linear": {},
    },
}
NETS = (1, 2, 3)
LOW = 0.015
"""Price of edges where genes depend on each other weakly: of 0.25, 0.06 and 0.015 the best for six of the regimes that
are trained on, of the melanoma control cells."""
MELANOMA = {  # NLL required (a Gaussian for each gene) and wanted, published MAE of DCD-FG
    "control": (1.384, 1.365, 0.845),
    "cocult": (1.353, 1.305, 0.774),
    "ifn": (1.436, 1.419, 0.891),
}


def fitted(name, data, seed, arguments, a, price=None):
    """A fit of one of our models, with the settings of the other benchmarks."""
    if name.startswith("nodags"):
        return learn(data.arrays, 60 if a.small else 800, seed, **arguments)[0]
    batch = int(np.clip(len(data.x) // 15, 8, 256))
    epochs = 10 if a.small else min(400, round(6000 * batch / len(data.x)))
    acyclic, edges = get("dcdfg").constraints
    acyclic = replace(acyclic, rule=replace(acyclic.rule, growth=acyclic.rule.growth ** (400 / epochs)))
    edges = edges if price is None else replace(edges, rule=Penalty(price))
    settings = {"max_epochs": epochs, "batch_size": batch, "constraints": (acyclic, edges)}
    settings["validation"] = 0.1 if len(data.x) > 1000 else 0.0
    return fit("dcdfg", data.arrays, seed=seed, progress=False, device="cpu", **settings, **arguments)


def structure(name, found, data):
    """AP, SHD and F1 of a fit."""
    if name.startswith("nodags"):
        score = edge_strengths(found).to_numpy()
        edges = score >= THRESHOLD["ours"]
    else:
        graph = causal_graph(found)
        score, edges = graph.probability.to_numpy(), graph.edges.to_numpy()
    return compared(score, edges, data)


def compared(score, edges, data):
    """AP, SHD and F1; where both directions of an edge are open, it is the true one."""
    truth, both = data.truth, edges & edges.T
    if np.array_equal(np.sort(data.targets), np.arange(len(data.genes))):  # one sample of each knock-out
        score = score * np.abs(data.x[np.argsort(data.targets)].diagonal())[:, None]
    first = np.triu(np.ones_like(edges), 1)
    edges = np.where(both, truth | (first & ~truth.T), edges)
    found = graph_scores(edges, truth)
    return {
        "AP": float(average_precision(truth, score)),
        "SHD": float(found["shd"]),
        "F1": float(found["f1"]),
        "edges": int(edges.sum()),
    }


def peer(method, data, a):
    """What a public method makes of the same rows, or None."""
    python = os.environ.get("FIELDGUIDE_GRAPHS_PYTHON")
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, x=data.x.astype(float), targets=data.targets)
        command = [python, str(Path(__file__).with_name("peer_graphs.py")), method, str(source), str(out)]
        threads = {f"{lib}_NUM_THREADS": "1" for lib in ("OMP", "MKL", "OPENBLAS")}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=a.peer_seconds, env=os.environ | threads
            )
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            print(f"{method} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return None
        return dict(np.load(out))


def graphs(part, label, data, a):
    """Rows of Sachs or of one DREAM4 network."""
    rows = []
    for name, arguments in OURS[part].items():
        for seed in range(a.seeds):

            def run(n=name, s=seed, x=arguments):
                return structure(n, fitted(n, data, s, x, a), data)

            rows.append({"set": label, "method": name} | kept(a.results, key(label, name, seed, a), run))
    for method in a.peers:

        def run(method=method):
            found = peer(method, data, a)
            return {} if found is None else compared(found["score"], found["edges"], data)

        rows.append({"set": label, "method": method} | kept(a.results, key(label, method, "peer", a), run))
    if part == "dream4":
        order = np.argsort(data.targets)
        moved = np.abs(data.x[order]) * ~np.eye(len(data.genes), dtype=bool)
        rows.append({"set": label, "method": "z", "AP": float(average_precision(data.truth, moved))})
    return rows


def key(*parts):
    """Name of a file of results."""
    *names, a = parts
    return "_".join(map(str, [*names, "small"] if a.small else names)).replace(", ", "_").replace(" ", "_")


def predictions(part, label, train, test, error, a):
    """Rows of our models: what they say of held-out interventions."""
    rows = []
    for name, arguments in OURS[part].items():
        for seed in range(a.seeds):

            def run(name=name, seed=seed, arguments=arguments):
                found = fitted(name, train, seed, arguments, a, LOW)
                means = interventional_scores(found, test.arrays).diagnostics["mean"]
                return {"NLL": float(means["nll_all"]), "MAE": float(means[error])}

            rows.append({"method": name} | kept(a.results, key(label, name, seed, a), run))
    return rows


def held_out(data, target, a):
    """Rows of Papalexi with one intervention held out."""
    gene, (train, test) = data.genes[target], (data.rows(data.targets != target), data.rows(data.targets == target))
    x, t = train.x.astype(float), test.x.astype(float)
    off = ~test.forced

    def predicted(parents):
        mean, scale = regression(x, train.forced, t, parents)
        return {"NLL": loss(t - mean, scale, test.forced), "MAE": float(np.abs(t - mean)[off].mean())}

    d = len(data.genes)
    rows = [
        {"method": "each gene"} | predicted(np.zeros((d, d), dtype=bool)),
        {"method": "blind Gaussian", "NLL": full_gaussian(x, t, test.forced)},
        {"method": "least squares", "MAE": predicted(~np.eye(d, dtype=bool))["MAE"]},
    ]
    rows += predictions("papalexi", f"papalexi_{gene}", train, test, "mae", a)
    for method in a.peers:

        def run(method=method):
            found = peer(method, train, a)
            return {} if found is None else predicted(found["dag"])

        rows.append({"method": method} | kept(a.results, key("papalexi", gene, method, "peer", a), run))
    return [{"held out": gene, "cells": len(t)} | row for row in rows]


def screen(condition, a):
    """Rows of one condition of the melanoma screen."""
    train, test = melanoma(condition, "tr"), melanoma(condition, "va")
    titles = ("nodags published", "LLC", "each gene", "full Gaussian")
    rows = [{"method": m, "NLL": v} for m, v in zip(titles, REAL[condition][:4], strict=True)]
    rows += predictions("melanoma", condition, train, test, "mae_all", a)
    return [{"set": condition} | row for row in rows]


def judge_screen(table):
    """NLL and MAE of the better of our models by NLL, for each condition."""
    met = []
    for condition, (required, wanted, mae) in MELANOMA.items():
        best = table.loc[condition].loc[list(OURS["melanoma"])].sort_values("NLL").iloc[0]
        text = (
            f"{condition}: NLL {best['NLL']:.4f} of {best.name} at most {required}, MAE {best['MAE']:.3f} at most {mae}"
        )
        met.append(verdict(text, best["NLL"] <= required and best["MAE"] <= mae))
        verdict(f"{condition}: (wanted, not required) NLL at most {wanted}", best["NLL"] <= wanted)
    return met


def means(rows, by):
    """Means of the columns of figures, by method."""
    import pandas as pd

    return pd.DataFrame(rows).groupby(by, sort=False).mean(numeric_only=True)


def judge(label, table, a):
    """AP of the better of our models against that of each peer."""
    own = table.loc[[n for n in table.index if n in OURS[label]], "AP"]
    others = table.loc[[n for n in table.index if n not in OURS[label]], "AP"].dropna()
    met = []
    for name, value in others.items():
        wanted = "(wanted, not required) " * (name == "z")
        claim = f"{label}: {wanted}AP {own.max():.3f} of {own.idxmax()} at least {value:.3f} of {name}"
        ok = verdict(claim, own.max() >= value)
        met += [] if wanted else [ok]
    return met


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", nargs="+", choices=list(OURS), default=list(OURS))
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--results", type=Path, help="folder: finished fits are kept there, and read again")
    p.add_argument("--peer-seconds", type=int, default=3600)
    p.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    p.add_argument("--small", action="store_true", help="few epochs, cells, genes and interventions")
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.peers and not os.environ.get("FIELDGUIDE_GRAPHS_PYTHON"):
        print("FIELDGUIDE_GRAPHS_PYTHON is not set (see benchmarks/README.md): the peers are left out")
        a.peers = []
    ok = []
    if "sachs" in a.parts:
        data = sachs()
        data = data.rows(np.arange(0, len(data.x), 10)) if a.small else data
        table = means(graphs("sachs", "sachs", data, a), "method")
        show(f"Sachs, {len(data.x)} cells, 18 consensus edges", table.reset_index().to_dict("records"))
        ok += judge("sachs", table, a)
    if "dream4" in a.parts:
        rows = [row for net in (NETS[:2] if a.small else NETS) for row in graphs("dream4", f"net{net}", dream4(net), a)]
        show("DREAM4, 100 genes", means(rows, ["set", "method"]).reset_index().to_dict("records"))
        ok += judge("dream4", means([r for r in rows if r["set"] != "net1"], "method"), a)
    if "melanoma" in a.parts:
        table = means([row for condition in MELANOMA for row in screen(condition, a)], ["set", "method"])
        show("Melanoma, held-out regimes", table.reset_index().to_dict("records"))
        ok += judge_screen(table)
    if "papalexi" in a.parts:
        data = papalexi(20 if a.small else 50)
        data = data.rows(np.arange(0, len(data.x), 5)) if a.small else data
        chosen = np.unique(data.targets[data.targets >= 0])[: 2 if a.small else None]
        rows = [row for target in chosen for row in held_out(data, target, a)]
        show(
            "Papalexi, each intervention held out", means(rows, ["held out", "method"]).reset_index().to_dict("records")
        )
        table = means(rows, "method")
        show("Papalexi, means over interventions", table.reset_index().to_dict("records"))
        best = table.loc[list(OURS["papalexi"]), "NLL"].idxmin()
        nll, mae = table.loc[best, ["NLL", "MAE"]]
        blind, plain = table.loc["blind Gaussian", "NLL"], table.loc["least squares", "MAE"]
        ok.append(verdict(f"papalexi: NLL {nll:.4f} of {best} below the blind Gaussian's {blind:.4f}", nll < blind))
        verdict(f"papalexi: (wanted, not required) MAE {mae:.4f} at most {plain:.4f} of least squares", mae <= plain)
    raise SystemExit(0 if all(ok) else 1)


if __name__ == "__main__":
    main()
