"""Runs a public method of causal discovery; its own environment has gcastle, ges and gies, but not fieldguide.

    $FIELDGUIDE_GRAPHS_PYTHON benchmarks/catalog/peer_graphs.py METHOD in.npz out.npz

``in.npz`` holds ``x`` [N, d] and ``targets`` [N] (-1 for none); ``out.npz`` gets ``score`` [d, d] (from row to column,
larger is surer), ``edges`` (both directions where a class leaves one open) and ``dag`` (one of the class).
"""

import sys

import numpy as np


def notears(x, targets):
    """Linear NOTEARS of gcastle on all rows, at its default penalty and threshold."""
    from castle.algorithms import Notears

    learner = Notears()
    learner.learn(x)
    found = np.asarray(learner.causal_matrix) > 0
    return np.abs(np.asarray(learner.weight_causal_matrix)), found, found


def classes(essential, extend):
    """Score, edges and one DAG of an equivalence class."""
    on = np.asarray(essential) != 0
    return on * (1 - 0.5 * (on & on.T)), on, np.asarray(extend(on.astype(int))) > 0


def ges(x, targets):
    """GES on all rows, by BIC."""
    import ges
    from ges.utils import pdag_to_dag

    return classes(ges.fit_bic(x)[0], pdag_to_dag)


def gies(x, targets):
    """GIES on all rows with their targets, by BIC."""
    import gies
    from ges.utils import pdag_to_dag

    which = np.unique(targets)
    data = [x[targets == t] for t in which]
    return classes(gies.fit_bic(data, [[] if t < 0 else [int(t)] for t in which])[0], pdag_to_dag)


def main(method, source, out):
    file = np.load(source)
    score, edges, dag = {"notears": notears, "ges": ges, "gies": gies}[method](file["x"], file["targets"])
    np.savez(out, score=score, edges=edges, dag=dag)


if __name__ == "__main__":
    main(*sys.argv[1:])
