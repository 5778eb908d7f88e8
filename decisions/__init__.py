"""What to do with a posterior: decisions with their uncertainty, their diagnostics and a stated error rate."""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.decisions, not decisions: install the project first "
        "(python -m pip install -c constraints.txt .)"
    )

from fieldguide.decisions.bandit import NoSupport, OptimisticValue, evaluate_policy
from fieldguide.decisions.budget import Allocation, allocate
from fieldguide.decisions.checks import Check, posterior_predictive_check
from fieldguide.decisions.curves import response_curve
from fieldguide.decisions.decision import Decision, UntrustworthyWeights, WeakDesign
from fieldguide.decisions.denoised import CellEstimates, denoised_expression, impute
from fieldguide.decisions.embedding import Embedding
from fieldguide.decisions.expression import differential_expression
from fieldguide.decisions.fdr import calls, expected_fdr, fdr_values
from fieldguide.decisions.graph import Graph, causal_graph, graph_scores
from fieldguide.decisions.graph_ensemble import GraphEnsemble, graph_ensemble
from fieldguide.decisions.imputation import Imputed, impute_genes
from fieldguide.decisions.independence import independence
from fieldguide.decisions.interventional import interventional_scores
from fieldguide.decisions.labels import class_probabilities, evaluate_rejection, reject_option
from fieldguide.decisions.logs import BanditLog
from fieldguide.decisions.noisy_labels import noise_matrix, relabel, suspects, true_labels
from fieldguide.decisions.rejection import (
    aurc,
    average_precision,
    decide,
    expected_loss,
    rejection_curve,
    risk_coverage,
)
from fieldguide.decisions.reward_model import predict_rewards

__all__ = [
    "Allocation",
    "BanditLog",
    "CellEstimates",
    "Check",
    "Decision",
    "Embedding",
    "Graph",
    "GraphEnsemble",
    "Imputed",
    "NoSupport",
    "OptimisticValue",
    "UntrustworthyWeights",
    "WeakDesign",
    "allocate",
    "aurc",
    "average_precision",
    "calls",
    "causal_graph",
    "class_probabilities",
    "decide",
    "denoised_expression",
    "differential_expression",
    "evaluate_rejection",
    "evaluate_policy",
    "expected_fdr",
    "expected_loss",
    "fdr_values",
    "graph_ensemble",
    "graph_scores",
    "impute",
    "independence",
    "noise_matrix",
    "impute_genes",
    "interventional_scores",
    "posterior_predictive_check",
    "predict_rewards",
    "reject_option",
    "rejection_curve",
    "relabel",
    "response_curve",
    "risk_coverage",
    "suspects",
    "true_labels",
]
