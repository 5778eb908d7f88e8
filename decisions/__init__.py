"""What to do with a posterior: decisions with their uncertainty, their diagnostics and a stated error rate."""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.decisions, not decisions: install the project first "
        "(python -m pip install -c constraints.txt .)"
    )

from fieldguide.decisions.checks import Check, posterior_predictive_check
from fieldguide.decisions.decision import Decision, UntrustworthyWeights, WeakDesign
from fieldguide.decisions.denoised import CellEstimates, denoised_expression, impute
from fieldguide.decisions.expression import differential_expression
from fieldguide.decisions.fdr import calls, expected_fdr, fdr_values

__all__ = [
    "CellEstimates",
    "Check",
    "Decision",
    "UntrustworthyWeights",
    "WeakDesign",
    "calls",
    "denoised_expression",
    "differential_expression",
    "expected_fdr",
    "fdr_values",
    "impute",
    "posterior_predictive_check",
]
