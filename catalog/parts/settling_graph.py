"""Masks over the edges of a graph that is settled in the course of the training: first its order, then its edges."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fieldguide.catalog.parts.edge_masks import softmax
from fieldguide.decisions.graphs.dag import acyclic_factors, acyclic_part
from fieldguide.inference.checks.ranges import Part, Size, checked
from fieldguide.inference.program import Program

SPEED = 2.0
"""How much faster logits of masks move than other parameters, at the one learning rate there is."""
SURE = 1e4
"""Logit of what is settled."""
DOUBT = 1.0
"""Largest logit of an edge against none, of either sign, after the order is fixed."""


class SettlingGraph(Program):
    """A program with one-hot masks over edges, [d, m, 3] (into a factor, out of it, none) or [d, d, 2] (edge, none).

    At ``order`` of the training all edges are put in by decreasing probability unless they close a cycle, which fixes
    an order of genes and factors: those that follow it start again near even odds, and no others ever come back. At
    ``settle``, edges of probability 1/2 or more are kept; from then on that graph is all there is.

    Parameters
    ----------
    n_features : int
        d genes.
    rank : int or None
        m factors; None for a graph of all pairs of genes.
    order, settle : float
        Shares of the training.
    """

    settled: Tensor
    kept: Tensor
    doubt: Tensor
    allowed: Tensor
    against: Tensor

    @checked
    def __init__(self, n_features: Size, rank: Size | None, order: Part, settle: Part) -> None:
        super().__init__()
        self.rank, self.order, self.settle = rank, order, settle
        self.shape = (n_features, n_features, 2) if rank is None else (n_features, rank, 3)
        self.guide_logits = nn.Parameter(torch.zeros(self.shape))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))
        self.register_buffer("kept", torch.zeros(self.shape))
        self.register_buffer("doubt", torch.zeros(self.shape))
        self.register_buffer("allowed", torch.ones(self.shape, dtype=torch.bool))
        self.register_buffer("against", torch.full((2,), -1))  # what `left_out` said when the order was fixed

    def logits(self) -> Tensor:
        """Logits of the masks."""
        return torch.where(self.settled, (self.kept - 1) * SURE, self._free_logits())

    def _free_logits(self) -> Tensor:
        return torch.where(self.allowed, SPEED * self.guide_logits, -SURE)

    def _split(self, probabilities: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.rank is None:
            return probabilities[..., 0] * (1 - torch.eye(self.shape[0], device=probabilities.device))
        return probabilities[..., 0], probabilities[..., 1]

    def edge_weights(self) -> Tensor | tuple[Tensor, Tensor]:
        """Return probabilities of edges into and out of factors [d, m], or between genes [d, d]; 0 or 1 if settled."""
        free = softmax(self._free_logits())
        return self._split(torch.where(self.settled, self.kept + 0 * free, free))

    def edge_probabilities(self) -> Tensor | tuple[Tensor, Tensor]:
        """Return the probabilities as they were when the graph was settled, or as they are."""
        return self._split(torch.where(self.settled, self.doubt, softmax(self._free_logits())).detach())

    def settled_edges(self) -> np.ndarray | tuple[np.ndarray, np.ndarray] | None:
        """Return the settled edges, in the form of `edge_weights`; None if there are none yet."""
        if not self.settled:
            return None
        parts = self._split(self.kept)
        return parts.cpu().numpy() > 0 if isinstance(parts, Tensor) else tuple(p.cpu().numpy() > 0 for p in parts)  # pyright: ignore

    @torch.no_grad()
    def fix_order(self) -> None:
        """Allow from now on the edges of the largest acyclic graph only, the most probable first; see the class."""
        self.against.copy_(torch.tensor(self.left_out()))
        self.allowed.copy_(self.acyclic_masks(0.0))
        self.allowed[..., -1] = True
        odds = SPEED * (self.guide_logits - self.guide_logits[..., -1:])
        self.guide_logits.copy_(odds.clamp(-DOUBT, DOUBT) / SPEED)

    @torch.no_grad()
    def settle_graph(self, threshold: float = 0.5) -> None:
        """Keep the edges that `fieldguide.decisions.causal_graph` would, and no others, from now on."""
        self.doubt.copy_(softmax(self._free_logits()))
        self.kept.copy_(self.acyclic_masks(threshold))
        self.settled.fill_(True)

    def acyclic_masks(self, threshold: float = 0.5) -> Tensor:
        """Return one-hot masks of the acyclic graph of largest probabilities."""
        parts = self.edge_probabilities()
        if isinstance(parts, Tensor):
            on = [acyclic_part(parts.cpu().numpy(), threshold)]
        else:
            on = list(acyclic_factors(parts[0].cpu().numpy(), parts[1].cpu().numpy(), threshold))
        on.append(~np.any(on, 0))
        return torch.from_numpy(np.stack(on, -1)).to(self.kept)

    def final_masks(self) -> Tensor:
        """Return the masks of the settled graph or, before it is settled, of the one that would be."""
        return self.kept if self.settled else self.acyclic_masks()

    def left_out(self) -> tuple[int, int]:
        """Return how many edges of probability 1/2 or more the acyclic graph leaves out, and how many there are.

        Edges between genes and factors, or between genes where there are no factors; if the order is fixed, as it was
        then.
        """
        if self.against[0] >= 0:
            return int(self.against[0]), int(self.against[1])
        parts = self.edge_probabilities()
        wanted = sum(int((part >= 0.5).sum()) for part in ([parts] if isinstance(parts, Tensor) else parts))
        return max(0, wanted - int(self.final_masks()[..., :-1].sum())), wanted

    def remarks(self) -> list[str]:
        said = []
        if self.unfinished():
            said.append(
                "the training ended before the graph was settled: its mechanisms were trained under random masks"
            )
        left_out, wanted = self.left_out()
        if left_out:
            said.append(
                f"acyclicity was not reached: of {wanted} edges of probability 1/2 or more, {left_out} would close a "
                "cycle, the least probable ones, and are left out of the graph; more epochs may reach it"
            )
        return said

    def unfinished(self) -> bool:
        return self.settle < 1 and not bool(self.settled)

    def training_loss(self, step: Any, objective: Any) -> Any:
        """Return the loss of the objective, after fixing the order or settling the graph when it is time."""
        if not torch.compiler.is_compiling() and self.unfinished():
            share = float(step.scalars.get("progress", 0.0))
            if share >= self.settle:
                self.settle_graph()
            elif share >= self.order and self.against[0] < 0:
                self.fix_order()
        return objective(step)
