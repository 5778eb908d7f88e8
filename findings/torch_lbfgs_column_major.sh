#!/usr/bin/env bash
# torch 2.13.0: torch.optim.LBFGS cannot take a parameter that is stored by columns.
#
# What torch.linalg.qr returns is stored by columns (strides 1, n), and clone() keeps that. Such a tensor is a valid
# parameter, and its gradient has the same strides. Expected: all optimisers take it, as Adam and SGD do. Seen: LBFGS
# flattens gradients with view, which needs rows, and raises at the first step. Anyone who starts a search over rotations
# from random orthogonal matrices meets it. Way round: clone(memory_format=torch.contiguous_format).
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.4
"$here/env/bin/python" - <<'PY'
import torch

start = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
print("torch", torch.__version__, "strides", start.stride())
assert start.stride() == (1, 4)
weights = torch.arange(1.0, 17.0).view(4, 4)


def outcome(optimiser, parameter):
    search = optimiser([parameter], lr=0.1)

    def loss():
        search.zero_grad()
        value = (weights * parameter**2).sum()
        value.backward()
        return value

    try:
        return f"from {float(search.step(loss)):.2f}"
    except RuntimeError as error:
        return f"RuntimeError: {error}"


said = {}
for optimiser in (torch.optim.Adam, torch.optim.SGD, torch.optim.LBFGS):
    for form in (torch.preserve_format, torch.contiguous_format):
        parameter = start.clone(memory_format=form).requires_grad_(True)
        key = optimiser.__name__, "by rows" if parameter.is_contiguous() else "by columns"
        said[key] = outcome(optimiser, parameter)
        print(*key, "->", said[key])
fails = {key for key, text in said.items() if text.startswith("RuntimeError: view size is not compatible")}
assert fails == {("LBFGS", "by columns")}, fails
PY
