"""What an objective sees: one minibatch of one program, with its weights computed on demand and only once."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fieldguide.inference.program import Batch, Program
from fieldguide.inference.weights.tracing import guide_draws
from fieldguide.inference.weights.weigh import Kind, Weights, weigh

Losses = Tensor | dict[str, Tensor]
"""What an objective returns: one loss, or one for each parameter group that it trains."""


def add_term(losses: Losses, term: Tensor, group: str | None = None) -> Losses:
    """Return the losses with a term added.

    Parameters
    ----------
    losses : Tensor or dict of str to Tensor
        One loss serves all groups: there the term reaches every parameter that it depends on.
    term : Tensor
        A scalar.
    group : str, optional
        The one group whose loss takes the term, by default each of them. A group that the objective does not train
        stays untrained: then the losses are as they were.
    """
    if isinstance(losses, Tensor):
        return losses + term
    return {name: loss + term if group in (None, name) else loss for name, loss in losses.items()}


def by_group(losses: Losses) -> dict[str, Tensor]:
    """Return one loss for each group: where there is one for all, it is that of model and guide."""
    return losses if isinstance(losses, dict) else {"theta": losses, "phi": losses}


def require_losses(losses: Any, objective: Any) -> None:
    """Raise TypeError unless an objective returned what can be minimised: a scalar, or one for each group.

    Raises
    ------
    TypeError
        Naming the objective and what it returned.
    """
    parts = losses if isinstance(losses, dict) else {"": losses}
    for group, loss in parts.items():
        if not isinstance(loss, Tensor) or loss.dim():
            shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.60}"
            where = f" for group '{group}'" if group else ""
            raise TypeError(f"the objective {objective!r:.60} must return a scalar tensor{where}, not {shape}")
    if not any(loss.requires_grad for loss in parts.values()):
        what = "no loss" if not parts else "a loss that depends on no parameter"
        raise TypeError(f"the objective {objective!r:.60} returned {what}: nothing can be trained by it")


class Step:
    """The context that objectives and constraints are called with.

    Parameters
    ----------
    program : Program
    batch : dict of Tensor
        One minibatch; its rows are named by ``batch["index"]`` where the loader made it.
    total : int, optional
        N, the number of cells in the data set; the minibatch itself by default.
    scalars : mapping of str to float or Tensor, optional
        Everything that changes over time: ``kl_weight``; ``progress`` of the training, in [0, 1]; multipliers.

    Attributes
    ----------
    logs : dict of str to Tensor
        What objectives noted with `log`; the training loop puts the epoch's mean of each into the history.
    cell_weights : Tensor [B], optional
        How much each cell counts in the gradients, whatever the objective; None counts all alike. It multiplies what
        flows back into the log weights of the cell, not the weights themselves, so that no K-sample bound is changed;
        the value of the loss stays the plain mean over cells.
    """

    def __init__(
        self,
        program: Program,
        batch: Batch,
        total: int | None = None,
        scalars: Mapping[str, float | Tensor] | None = None,
    ) -> None:
        self.program = program
        self.batch = batch
        self.total = total
        self.scalars = dict(scalars or {})
        self.logs: dict[str, Tensor] = {}
        self.cell_weights: Tensor | None = None
        self._cache: dict[tuple[int, str], Weights] = {}
        self._drawn: dict[str, Tensor] | None = None

    def weights(self, particles: int = 1, kind: Kind = "reparam") -> Weights:
        """Return the `Weights` of K fresh particles of the given kind; repeated calls return the same.

        Weights of kind "path" are new in each call: what scales their gradients belongs to one objective.
        """
        key = (particles, kind)
        if key not in self._cache or kind == "path":
            weights = weigh(self.program, self.batch, particles, kind, self.total, self.scalars.get("kl_weight", 1.0))
            if self.cell_weights is not None:
                log_p, log_q = (_counted(value, self.cell_weights) for value in (weights.log_p, weights.log_q))
                weights = replace(weights, log_p=log_p, log_q=log_q)
            self._cache[key] = weights
        return self._cache[key]

    def computed(self) -> list[Weights]:
        """Return the weights that were asked for so far."""
        return list(self._cache.values())

    def log(self, name: str, value: Tensor) -> None:
        """Note a number of this minibatch (a mean over its cells), for the history; without a gradient."""
        self.logs[name] = value.detach()

    def value(self, site: str) -> Tensor:
        """Return the draws [K, B, ...] of a site from the weights at hand (one particle if there are none)."""
        weights = next(reversed(self._cache.values())) if self._cache else self.weights()
        if site not in weights.draws:
            raise KeyError(f"no site '{site}'; the program has {sorted(weights.draws)}")
        return weights.draws[site]

    def draw(self, site: str) -> Tensor:
        """Return one draw of a site for each cell [B, D], through which a gradient reaches the guide as it is.

        It is the first particle of the weights at hand. Where their gradients mean something else (draws that are
        constants, or scaled by the objective), the guide is run once more; that changes neither the random state nor
        buffers such as running means, so that a training without this draw takes the same course.
        """
        usable = [w for (_, kind), w in self._cache.items() if kind in ("reparam", "analytic")]
        known = usable[-1].draws if usable else {}
        if site not in known and self._drawn is None:
            self._drawn = guide_draws(self.program, self.batch)
        source = known if site in known else self._drawn or {}
        value = source[site] if site in source else self.value(site)
        cells = next(iter(self.batch.values())).shape[0]
        return torch.movedim(value[0], self.program.depth - 1, 0).reshape(cells, -1)


def _counted(values: Tensor, times: Tensor) -> Tensor:
    """Return ``values`` [K, B] with their gradients multiplied by ``times`` [B]."""
    still = values.detach()
    return still + times * (values - still)
