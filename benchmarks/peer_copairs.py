"""Mean average precision of copairs (0.5.5) for profiles in a file; nothing of this library is needed.

    PYTHON benchmarks/peer_copairs.py profiles.csv out.csv --permutations 10000

The file has a column ``complex`` (a label of its own for a gene without one), and one for each feature.
"""

import argparse

import pandas as pd
from copairs.map import average_precision, mean_average_precision


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("profiles")
    p.add_argument("out")
    p.add_argument("--permutations", type=int, default=10_000)
    a = p.parse_args()
    table = pd.read_csv(a.profiles)
    meta, features = table[["complex"]], table.drop(columns="complex").to_numpy()
    rules = {"pos_sameby": ["complex"], "pos_diffby": [], "neg_sameby": [], "neg_diffby": ["complex"]}
    each = average_precision(meta, features, **rules, progress_bar=False)
    options = {"null_size": a.permutations, "threshold": 0.05, "seed": 0, "progress_bar": False}
    mean_average_precision(each, ["complex"], **options).to_csv(a.out, index=False)


if __name__ == "__main__":
    main()
