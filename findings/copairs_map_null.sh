#!/usr/bin/env bash
# copairs 0.5.5: p-values of a mean average precision compare a mean over several queries with single queries.
#
# The p-value of a group of n profiles compares the mean of its n average precisions with a null distribution. Queries
# with equally many positives and candidates share one vector of random average precisions, and the null of the mean is
# the mean of n copies of that vector, that is the vector itself: it has the spread of one query, not that of a mean of
# n. Expected: where labels mean nothing, 5 % of the groups have p < .05. Seen: none of 400 groups of twelve, where 5 %
# have by shuffled labels (which hold whatever the profiles, and let queries of one group lean on one another). So groups
# that are retrieved are missed, the more the larger they are. Way round: shuffle the labels of the profiles.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/python" -m pip install --quiet --disable-pip-version-check copairs==0.5.5 numpy==2.3.4 pandas==2.3.3
"$here/env/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import pandas as pd
from copairs.map import average_precision, mean_average_precision

GROUPS, SIZE, SHUFFLES = 25, 12, 100
rules = {"pos_sameby": ["group"], "pos_diffby": [], "neg_sameby": [], "neg_diffby": ["group"], "progress_bar": False}
label = np.repeat(np.arange(GROUPS), SIZE)


def means(values, labels):
    """Mean average precision of each group, by their own hand."""
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    rank = np.argsort(np.argsort(-cosine, 1), 1) + 1
    out = np.empty(GROUPS)
    for g in range(GROUPS):
        rows = np.flatnonzero(labels == g)
        places = np.sort(rank[np.ix_(rows, rows)] + np.eye(SIZE) * 10**6, 1)[:, : SIZE - 1]
        out[g] = (np.arange(1, SIZE) / places).mean()
    return out


theirs, ours, largest = [], [], 0.0
for seed in range(16):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(GROUPS * SIZE, 100))
    each = average_precision(pd.DataFrame({"group": label}), values, **rules)
    table = mean_average_precision(each, ["group"], null_size=5000, threshold=0.05, seed=seed, progress_bar=False)
    real = means(values, label)
    largest = max(largest, float(np.abs(table["mean_average_precision"].to_numpy() - real).max()))
    null = np.concatenate([means(values, rng.permutation(label)) for _ in range(SHUFFLES)])
    theirs += table["p_value"].tolist()
    ours += [(1 + (null >= value).sum()) / (1 + len(null)) for value in real]
theirs, ours = np.array(theirs), np.array(ours)
print("copairs", version("copairs"), "on", len(theirs), "groups of random profiles; its means are right to", largest)
for name, p in (("copairs", theirs), ("shuffled labels", ours)):
    print(f"{name}: {np.mean(p < 0.05):.3f} of p-values below .05, {np.mean(p < 0.2):.3f} below .2")
assert largest < 1e-4
assert np.mean(theirs < 0.05) < 0.01
assert 0.02 < np.mean(ours < 0.05) < 0.09
PY
