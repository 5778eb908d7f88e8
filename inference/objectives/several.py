"""One objective for each group of cells, followed together: their gradients are combined, not their losses."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_text, one_of, set_fields
from fieldguide.inference.objectives.bounds import ELBO
from fieldguide.inference.step import Step
from fieldguide.inference.weights.weigh import Weights

RULES = ("mgda", "equalised", "balanced", "pooled")
HEAVY = 1e4
"""Weight of the condition that shares sum to one, against gradients of norm one."""


@dataclass(frozen=True)
class Several:
    """An objective for each group of cells; each step goes along a combination of their gradients.

    The loss of a group is the mean over its cells of the minibatch, so that a small group counts as much as a large
    one. Cells are drawn as ever: none comes more often. The value of the loss is that of the objective on all cells.

    Parameters
    ----------
    objective : objective
        Of each group: one with a single loss and a bound for each cell, as ELBO, IWAE, WakeWake and Chi have.
    by : str
        Field of the program with the group of each cell, int64 [B].
    rule : {"mgda", "equalised", "balanced", "pooled"}
        ``mgda``: the shortest convex combination of the gradients, which lowers every loss (Desideri 2012; Sener and
        Koltun 2018). It follows the group with the smaller gradient, for good or ill. ``equalised``: the same of the
        gradients divided by their norms. ``balanced``: their mean. ``pooled``: weighted by the cells, which is the
        objective alone.

    Raises
    ------
    TypeError
        If the objective has no bound for each cell, or a loss for each parameter group.
    ValueError
        If the program reads no field of that name, or the training is compiled.

    Examples
    --------
    >>> Several(by="group").rule
    'mgda'
    """

    objective: Any = field(default_factory=ELBO)
    by: str = "group"
    rule: str = "mgda"

    def __post_init__(self) -> None:
        set_fields(self, by=checked_text("by", self.by))
        one_of("rule", self.rule, RULES)
        if isinstance(self.objective, type | Several) or not hasattr(self.objective, "per_cell"):
            raise TypeError(
                f"Several: objective must have a bound for each cell, as ELBO() has, not {self.objective!r:.60}"
            )

    @property
    def particles(self) -> int:
        """Draws for each cell, those of the objective."""
        return self.objective.particles

    def per_cell(self, weights: Weights) -> Tensor:
        """Return the bound [B] of each cell, that of the objective."""
        return self.objective.per_cell(weights)

    def __call__(self, step: Step) -> Tensor:
        if self.by not in step.batch:
            raise ValueError(
                f"Several(by={self.by!r}): the program reads no such field; it reads {', '.join(step.batch)}"
            )
        if step.batch[self.by].dim() != 1 or step.batch[self.by].is_floating_point():
            raise ValueError(f"Several(by={self.by!r}): the field must have one code for each cell, as a Category has")
        if torch.compiler.is_compiling():
            raise ValueError("Several combines gradients inside the step: fit without compile=True")
        loss = self.objective(step)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"Several: {self.objective!r:.60} has a loss for each parameter group ({', '.join(loss)}); "
                "take one with a single loss, such as ELBO() or IWAE()"
            )
        if self.rule == "pooled" or not (torch.is_grad_enabled() and loss.requires_grad):
            return loss
        groups = [step.batch[self.by] == code for code in step.batch[self.by].unique()]
        if len(groups) == 1:
            return loss
        terms = [v for w in step.computed() for v in (w.log_p, w.log_q) if v.requires_grad]
        flows = torch.autograd.grad(loss, terms, retain_graph=True, allow_unused=True)
        pairs = [(v, f) for v, f in zip(terms, flows, strict=True) if f is not None]
        counts = torch.ones_like(groups[0], dtype=loss.dtype) if step.cell_weights is None else step.cell_weights
        sizes = torch.stack([counts[g].sum() for g in groups]) / len(counts)
        shares = torch.full_like(sizes, 1 / len(groups))
        if self.rule != "balanced":
            members = [p for p in step.program.parameters() if p.requires_grad]
            gradients = [_gradient(pairs, g / size, members) for g, size in zip(groups, sizes, strict=True)]
            shares = smallest(torch.stack(gradients), self.rule == "equalised").to(sizes)
        weight = (torch.stack(groups) * (shares / sizes)[:, None]).sum(0)
        combined = torch.stack([(f * weight * v).sum() for v, f in pairs]).sum()
        return loss.detach() + combined - combined.detach()


def _gradient(pairs: list[tuple[Tensor, Tensor]], weight: Tensor, members: list[Tensor]) -> Tensor:
    """Return the gradient of the cells' losses under these weights [B], all parameters in one vector."""
    values, flows = [v for v, _ in pairs], [f * weight for _, f in pairs]
    parts = torch.autograd.grad(values, members, flows, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(members, parts, strict=True)])


def smallest(gradients: Tensor, equalise: bool = False) -> Tensor:
    """Return the shares [G], which sum to one, of gradients [G, P] in the shortest vector of their convex hull.

    Parameters
    ----------
    gradients : Tensor [G, P]
    equalise : bool
        Divide each by its norm first; the shares are those of the gradients as they are.

    Examples
    --------
    >>> smallest(torch.tensor([[2.0, 0.0], [0.0, 1.0]])).numpy().round(6).tolist()
    [0.2, 0.8]
    """
    gradients = gradients.double()
    norms = gradients.norm(dim=1).clamp(min=1e-300)
    unit = norms if equalise else norms.max().expand_as(norms)
    scaled = gradients / unit[:, None]
    gram = (scaled @ scaled.T).cpu().numpy()
    values, vectors = np.linalg.eigh(gram)
    root = (vectors * np.sqrt(values.clip(0))).T
    system = np.vstack((root, np.full(len(gram), HEAVY)))
    shares, _ = nnls(system, np.append(np.zeros(len(root)), HEAVY))
    shares = torch.from_numpy(shares) / (unit.cpu() if equalise else 1.0)
    return shares / shares.sum()
