#!/usr/bin/env bash
# anndata 0.13.4: copying the layers of one AnnData to another by a loop also replaces the other's X.
#
# Expected: `for name, values in source.layers.items(): target.layers[name] = values` copies what is stored as layers and
# leaves target.X as it is, as with anndata 0.12; the names of the layers are those that were given.
# Seen: since X is kept among the layers under the name None, the loop overwrites target.X without a word (here normalised
# values by raw counts), `sorted(source.layers)` is a TypeError, and one layer counts as two.
# Needs Python 3.12 or 3.13. Fails if this is no longer so.
set -euo pipefail

interpreter=""
for name in python3.13 "$HOME"/.pyenv/versions/3.13*/bin/python python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python python3; do
  if "$name" -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 12)' 2>/dev/null; then
    interpreter="$name"
    break
  fi
done
[ -n "$interpreter" ] || { echo "no Python 3.12 or later was found"; exit 2; }

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$interpreter" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check anndata==0.13.4 numpy==2.5.5 pandas==3.1.1

cat >"$folder/show.py" <<'PYTHON'
from importlib.metadata import version

import anndata
import numpy as np

raw = np.array([[1.0, 3.0], [2.0, 2.0]])
source = anndata.AnnData(raw, layers={"spliced": raw - 1})
target = anndata.AnnData(np.log1p(raw))
before = np.array(target.X)
print("anndata", version("anndata"))
print("names of the layers:", list(source.layers), "number:", len(source.layers))
for name, values in source.layers.items():
    target.layers[name] = values
print("X before:", before.round(3).tolist())
print("X after: ", np.asarray(target.X).round(3).tolist())
try:
    print("sorted:", sorted(source.layers))
    orders = True
except TypeError as error:
    print("sorted: TypeError:", error)
    orders = False

assert None in list(source.layers) and len(source.layers) == 2, "the names have changed"
assert not np.array_equal(before, target.X) and np.array_equal(raw, target.X), "X is left alone now"
assert not orders, "names can be sorted now"
print("as described: X was replaced by a copy of the layers")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
