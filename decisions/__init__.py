"""What to do with a posterior: decisions with their uncertainty, their diagnostics and a stated error rate."""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.decisions, not decisions: install the project first "
        "(python -m pip install -c constraints.txt .)"
    )

from fieldguide.decisions.budgets.allocation import Allocation, allocate
from fieldguide.decisions.budgets.response_curves import response_curve
from fieldguide.decisions.decision import Decision, UntrustworthyWeights, WeakDesign
from fieldguide.decisions.expression.denoised import CellEstimates, denoised_expression, impute
from fieldguide.decisions.expression.differential import differential_expression
from fieldguide.decisions.expression.predictive_checks import Check, posterior_predictive_check
from fieldguide.decisions.expression.salient import salient_genes
from fieldguide.decisions.fdr import calls, expected_fdr, fdr_values
from fieldguide.decisions.graphs.ensemble import GraphEnsemble, graph_ensemble
from fieldguide.decisions.graphs.graph import Graph, causal_graph, graph_scores
from fieldguide.decisions.graphs.held_out_regimes import interventional_scores
from fieldguide.decisions.graphs.simulated_interventions import sample_under
from fieldguide.decisions.imputation.genes import Imputed, impute_genes
from fieldguide.decisions.labels.classes import class_probabilities, evaluate_rejection, reject_option
from fieldguide.decisions.labels.noisy import noise_matrix, relabel, suspects, true_labels
from fieldguide.decisions.labels.rejection import (
    aurc,
    average_precision,
    decide,
    expected_loss,
    rejection_curve,
    risk_coverage,
)
from fieldguide.decisions.latent_independence import independence
from fieldguide.decisions.perturbations.contexts import context_effects
from fieldguide.decisions.perturbations.genes import latent_genes
from fieldguide.decisions.perturbations.pairs import context_responses
from fieldguide.decisions.perturbations.prediction import additive_expression, predicted_expression
from fieldguide.decisions.perturbations.targets import perturbation_targets
from fieldguide.decisions.policies.action_embedding import Embedding
from fieldguide.decisions.policies.bandit_log import BanditLog
from fieldguide.decisions.policies.evaluation import NoSupport, OptimisticValue, evaluate_policy
from fieldguide.decisions.policies.reward_model import predict_rewards
from fieldguide.decisions.representations.agreement import cluster_agreement, complex_recall
from fieldguide.decisions.representations.alike import alike_pairs
from fieldguide.decisions.representations.profiles import perturbation_profiles
from fieldguide.decisions.representations.retrieval import retrieval

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
    "additive_expression",
    "alike_pairs",
    "allocate",
    "aurc",
    "average_precision",
    "calls",
    "causal_graph",
    "class_probabilities",
    "cluster_agreement",
    "complex_recall",
    "context_effects",
    "context_responses",
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
    "latent_genes",
    "noise_matrix",
    "impute_genes",
    "interventional_scores",
    "perturbation_profiles",
    "perturbation_targets",
    "posterior_predictive_check",
    "predicted_expression",
    "predict_rewards",
    "reject_option",
    "rejection_curve",
    "relabel",
    "retrieval",
    "response_curve",
    "risk_coverage",
    "salient_genes",
    "sample_under",
    "suspects",
    "true_labels",
]
