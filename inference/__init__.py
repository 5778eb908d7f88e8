"""How programs are fitted, whatever they are: objectives, one training loop, posteriors."""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.inference, not inference: install the project first "
        "(python -m pip install -c constraints.txt .)"
    )

from fieldguide.inference.comparison import Comparison, compare
from fieldguide.inference.constraints import (
    Acyclicity,
    AugmentedLagrangian,
    Constraint,
    EdgeCount,
    Penalty,
    hsic,
    permutation_test,
)
from fieldguide.inference.data.balanced import Balanced
from fieldguide.inference.data.doses import Doses
from fieldguide.inference.data.fields import (
    Categories,
    Category,
    Continuous,
    Counts,
    Field,
    Matrix,
    Positive,
    SizeFactor,
    UnitInterval,
    Values,
)
from fieldguide.inference.data.groups import Groups
from fieldguide.inference.data.images import Images
from fieldguide.inference.data.interventions import (
    InterventionSplit,
    Targets,
    intervention_mask,
    intervention_regimes,
    split_interventions,
)
from fieldguide.inference.data.labels import Annotations, Labels, Supervision
from fieldguide.inference.data.minibatches import Dataset, Loader
from fieldguide.inference.data.modalities import Modality, join_modalities
from fieldguide.inference.data.perturbations import Perturbations
from fieldguide.inference.data.reading import SchemaError
from fieldguide.inference.data.schema import FittedSchema, Schema
from fieldguide.inference.fitted import Fit
from fieldguide.inference.fitting import fit
from fieldguide.inference.loading import load
from fieldguide.inference.mixture import Mixture, mix
from fieldguide.inference.objectives import (
    CUBO,
    ELBO,
    IWAE,
    Chi,
    ForwardKL,
    Objective,
    OffPolicyValue,
    Renyi,
    Several,
    SleepPhi,
    VRMax,
    WakeWake,
    resolve,
)
from fieldguide.inference.posterior import Posterior
from fieldguide.inference.program import Batch, Program
from fieldguide.inference.restarts import fit_best
from fieldguide.inference.step import Step
from fieldguide.inference.three_steps import ThreeStep, three_step
from fieldguide.inference.weights.weigh import Weights, weigh

__all__ = [
    "CUBO",
    "ELBO",
    "IWAE",
    "Acyclicity",
    "Annotations",
    "AugmentedLagrangian",
    "Balanced",
    "Batch",
    "Categories",
    "Category",
    "Chi",
    "Comparison",
    "Constraint",
    "Continuous",
    "Counts",
    "Dataset",
    "Doses",
    "EdgeCount",
    "Field",
    "Fit",
    "FittedSchema",
    "ForwardKL",
    "Images",
    "InterventionSplit",
    "Labels",
    "Loader",
    "Matrix",
    "Mixture",
    "Modality",
    "Objective",
    "OffPolicyValue",
    "Penalty",
    "Groups",
    "Perturbations",
    "Positive",
    "Posterior",
    "Program",
    "Renyi",
    "Schema",
    "SchemaError",
    "Several",
    "SizeFactor",
    "SleepPhi",
    "Step",
    "Supervision",
    "Targets",
    "ThreeStep",
    "UnitInterval",
    "VRMax",
    "Values",
    "WakeWake",
    "Weights",
    "compare",
    "fit",
    "fit_best",
    "hsic",
    "intervention_mask",
    "intervention_regimes",
    "join_modalities",
    "load",
    "mix",
    "permutation_test",
    "resolve",
    "split_interventions",
    "three_step",
    "weigh",
]
