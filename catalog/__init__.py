"""The catalog: published models as Pyro model/guide pairs, one file each, with what they read and whom to cite."""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.catalog, not catalog: install the project first (python -m pip install -c constraints.txt .)"
    )

from fieldguide.catalog import (
    comparative,
    dcdfg,
    fcr,
    gimvi,
    grape,
    grape_vi,
    hcv,
    image_ivae,
    incentives,
    m1m2,
    mvae,
    nodags,
    poxm,
    ppca,
    scbd,
    scvi,
    svae,
)
from fieldguide.catalog.declare import Entry, citation, entries, entry, get
from fieldguide.catalog.procedures.edge_strengths import contractive_view, edge_strengths
from fieldguide.catalog.procedures.perturbations import learn_perturbations
from fieldguide.catalog.procedures.policies import LearnedPolicy, fit_self_normalised, learn_policy, policy_data
from fieldguide.catalog.procedures.responses import response, response_draws, response_ensemble
from fieldguide.decisions import sample_under

__all__ = [
    "Entry",
    "LearnedPolicy",
    "citation",
    "comparative",
    "contractive_view",
    "edge_strengths",
    "dcdfg",
    "entries",
    "entry",
    "fcr",
    "fit_self_normalised",
    "get",
    "gimvi",
    "grape",
    "grape_vi",
    "hcv",
    "image_ivae",
    "incentives",
    "learn_perturbations",
    "learn_policy",
    "m1m2",
    "mvae",
    "nodags",
    "policy_data",
    "poxm",
    "ppca",
    "response",
    "response_draws",
    "response_ensemble",
    "sample_under",
    "scbd",
    "scvi",
    "svae",
]
