"""The one thing that a model has to be: a torch module with a Pyro ``model`` and a Pyro ``guide``."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Program(nn.Module):
    """A Pyro model/guide pair whose parameters are ordinary torch parameters.

    Subclasses write `model` and `guide` with ``pyro.sample``, ``pyro.plate``, ``pyro.factor`` and
    ``pyro.deterministic`` only. There is no ``pyro.param`` and no global parameter store: everything that is
    learned is an ``nn.Parameter``, positive quantities through ``exp`` or ``softplus``.

    Sites inside the data plate (see `cells`) have one value per cell; tensors inside a program may carry
    a leading particle dimension, so networks act on the last dimension and likelihoods broadcast.

    Attributes
    ----------
    plate : str
        Name of the data plate. It is the innermost plate (dim -1).
    depth : int
        Number of nested plates, the data plate included. Particles live at dim ``-(depth + 1)``.
    independent : bool
        False when the likelihood couples the cells of a minibatch, so that per-cell bounds do not exist.
    latent : str
        The latent site that `fieldguide.inference.Fit.latent` reports.
    warmup : tuple of str, optional
        Latent sites whose Kullback-Leibler term is weighted by the warm-up schedule; None means all of them.
    guide_modules : tuple of str
        Prefixes of the attribute names that belong to the guide (parameter group ``phi``).
    balanced : Balanced, optional
        How training draws its minibatches, for a program in which the cells of a minibatch meet; by default every cell
        comes once in an epoch.
    nuisance : tuple of str
        Latent sites of what is technical: decisions on expression draw them anew from their prior, so that cells are
        compared at equal quality.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> import torch
    >>> class Mean(Program):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.guide_loc = nn.Parameter(torch.zeros(1))
    ...     def model(self, batch):
    ...         with self.cells(batch):
    ...             z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...             pyro.sample("x", dist.Normal(z, 1.0), obs=batch["x"])
    ...     def guide(self, batch):
    ...         with self.cells(batch):
    ...             pyro.sample("z", dist.Normal(self.guide_loc + batch["x"] / 2, 0.7))
    >>> sorted((name, len(members)) for name, members in Mean().groups().items())
    [('phi', 1), ('theta', 0)]
    """

    plate: str = "cells"
    depth: int = 1
    independent: bool = True
    latent: str = "z"
    warmup: tuple[str, ...] | None = None
    guide_modules: tuple[str, ...] = ("encoder", "guide")
    nuisance: tuple[str, ...] = ()
    balanced: Any = None

    def model(self, batch: Batch) -> None:
        """Joint distribution of latents and data, as Pyro statements."""
        raise NotImplementedError(f"{type(self).__name__} has no model(batch)")

    def guide(self, batch: Batch) -> None:
        """Approximate posterior over the latent sites of `model`, as Pyro statements."""
        raise NotImplementedError(f"{type(self).__name__} has no guide(batch)")

    def cells(self, batch: Batch) -> pyro.plate:
        """Return the data plate, of the size of the minibatch (the factor N/B is applied by the objective)."""
        return pyro.plate(self.plate, batch_size(batch), dim=-1)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameter groups that an objective may address: ``theta`` (model side) and ``phi`` (guide side)."""
        phi = {n for n, _ in self.named_parameters() if n.startswith(self.guide_modules)}
        return {
            "theta": [p for n, p in self.named_parameters() if n not in phi],
            "phi": [p for n, p in self.named_parameters() if n in phi],
        }

    def prepare(self, batches: Iterable[Batch]) -> None:
        """See the training data once before training, to set buffers (empirical priors). Does nothing here."""

    def remarks(self) -> list[str]:
        """Return what its user should know of what was learnt; `fit` warns of each. Nothing here."""
        return []

    def unfinished(self) -> bool:
        """Return whether what is trained on has yet to change: until then no epoch is the best. Never, here."""
        return False

    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Return the loss of one minibatch in training: that of the objective.

        Override it to add terms that train a part of the program but belong to no density (a classifier's cross
        entropy); they never enter importance weights. See `Step.cell_weights` to count cells unequally.
        """
        return objective(step)

    def forward(self, role: str, batch: Batch) -> None:
        """Run ``model`` or ``guide``; lets ``torch.func.functional_call`` swap the parameters."""
        getattr(self, role)(batch)


def batch_size(batch: Batch) -> int:
    """Return the number of cells in a minibatch: the length of its first field."""
    return next(iter(batch.values())).shape[0]
