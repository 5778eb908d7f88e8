"""DCD-FG: causal graphs from interventions, through few factors or of all pairs of genes (Lopez et al. 2022)."""

from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.edge_masks import GumbelOneHot
from fieldguide.catalog.parts.observational_moments import unforced
from fieldguide.catalog.parts.settling_graph import SettlingGraph
from fieldguide.inference import ELBO, Acyclicity, AugmentedLagrangian, Constraint, EdgeCount, Matrix, Penalty, Schema
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Chance, Size, checked
from fieldguide.inference.data.interventions import Targets, intervention_mask
from fieldguide.inference.program import Batch


@entry(
    "dcdfg",
    title="DCD-FG: an acyclic causal graph of genes, through few factors, from interventions",
    schema=Schema(x=Matrix("X"), targets=Targets(optional=True)),
    objective=ELBO(kl="analytic"),
    constraints=(
        Constraint(Acyclicity(warmup=0.3), rule=AugmentedLagrangian(rho=1e-3, growth=1.1, largest=1e6), group="phi"),
        Constraint(EdgeCount(warmup=0.8), rule=Penalty(0.25), group="phi"),
    ),
    supports=("elbo",),
    defaults={"max_epochs": 400, "learning_rate": 2e-3, "epsilon": 1e-8, "cooldown": 0.2},
    cite="""
@inproceedings{lopez2022large,
  title = {Large-scale differentiable causal discovery of factor graphs},
  author = {Lopez, Romain and H{\\"u}tter, Jan-Christian and Pritchard, Jonathan and Regev, Aviv},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {35},
  year = {2022}
}""",
)
class DCDFG(SettlingGraph):
    r"""Structural equations of d genes with a mask over edges.

    For each cell with expression x [d], of which the genes I were intervened on, and for m factors f::

        W_jf in {gene j -> factor f, factor f -> gene j, none}     probabilities a_jf, b_jf, 1 - a_jf - b_jf
        h_f = network_f(x_j for j -> f),   mean_j = sum of weight_jf h_f over f -> j
        x_j ~ Normal(mean_j, scale_j)                              for j not in I

    with one draw of W for each of a few groups of cells of the minibatch. Genes are centred and scaled within. The
    graph of genes has an edge i -> j where a factor joins them. With ``rank=None`` there are no factors: a mask over
    all pairs of genes, and a network (or weights) for each gene, as in DCDI and NOTEARS.

    Trained under two constraints: `Acyclicity` of (a, b), at the cost of m x m matrices, by an augmented Lagrangian,
    from 30 % of the training on; and `EdgeCount`, a penalty that rises from zero. That price of cycles also drives out
    edges that belong there. At ``order`` of the training, therefore, all edges are put in by decreasing probability
    unless they close a cycle, which fixes an order of genes and factors; those that follow it start again near even
    odds, and no others ever come back. At ``settle``, edges of probability 1/2 or more are kept; from then on that
    graph is all there is, and its mechanisms are trained on. `fieldguide.decisions.causal_graph` returns it.

    Sites: ``W`` (one-hot masks), ``expected`` [d] (the mean of each gene given the others), ``x``.

    Parameters
    ----------
    n_features : int
        d; filled in by ``fit``.
    rank : int, optional
        m; None for a graph of all pairs. Twice as many as there may be, or more: what is not needed loses its edges.
    mechanism : {"mlp", "linear"}
        Networks of two layers, or weights.
    interventions : {"perfect", "imperfect"}
        Perfect: an intervened gene no longer depends on its parents, and its own term is left out. Imperfect: it has
        its own gain on the mean, shift and scale, the same in every regime.
    n_hidden : int
        Units in each of the two layers.
    masks : int, optional
        Draws of W in a minibatch; None for one for each cell, as published.
    prior : float, optional
        Prior probability of an edge: the masks are then a posterior over graphs, with their Kullback-Leibler term. By
        default there is none, as published, and the penalty on edges is all that makes graphs sparse.
    order : float
        Share of the training after which the order is fixed; from ``settle`` on, never.
    settle : float
        Share of the training after which the graph is settled; 1 for never, and then no order is fixed either.
    """

    latent = "expected"
    centre: Tensor
    spread: Tensor
    w1: Tensor

    @checked
    def __init__(
        self,
        n_features: int,
        rank: Size | None = 20,
        mechanism: str = "mlp",
        interventions: str = "perfect",
        n_hidden: Size = 16,
        masks: Size | None = 8,
        prior: Chance | None = None,
        order: float = 0.55,
        settle: float = 0.8,
    ) -> None:
        one_of("mechanism", mechanism, ("mlp", "linear"))
        one_of("interventions", interventions, ("perfect", "imperfect"))
        if n_features < 2:
            raise ValueError(f"a graph needs at least two genes, not {n_features}")
        if prior is not None and masks is None:
            raise ValueError("prior needs masks that cells share (masks=1, say)")
        super().__init__(n_features, rank, order, settle)
        self.mechanism, self.interventions, self.masks, self.prior = mechanism, interventions, masks, prior
        m = self.shape[1]
        if mechanism == "mlp":
            gain = (2 / (1 + 0.01**2)) ** 0.5
            for name, shape in {"w1": (n_hidden, n_features), "w2": (n_hidden, n_hidden), "w3": (1, n_hidden)}.items():
                weight = torch.randn(m, *shape) * gain * (2 / sum(shape)) ** 0.5
                setattr(self, name, nn.Parameter(weight))
                setattr(self, f"{name}_bias", nn.Parameter(torch.zeros(m, shape[0])))
        else:
            self.weight = nn.Parameter(torch.randn(m, n_features) * n_features**-0.5)
        if rank is not None:
            self.decoder = nn.Parameter(torch.randn(n_features, m) * m**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_features))
        self.log_variance = nn.Parameter(torch.zeros(n_features))
        if interventions == "imperfect":
            self.gain, self.shift = nn.Parameter(torch.ones(n_features)), nn.Parameter(torch.zeros(n_features))
            self.own_log_variance = nn.Parameter(torch.zeros(n_features))
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Centre and scale each gene by the cells in which it was not intervened on."""
        moments = unforced(batches, self.intervened)
        self.centre.copy_(moments.centre)
        self.spread.copy_(moments.spread)
        self._said = moments.remarks

    def remarks(self) -> list[str]:
        return [*getattr(self, "_said", ()), *super().remarks()]

    def intervened(self, batch: Batch) -> Tensor:
        """Return which genes were intervened on, bool [B, d]."""
        if "targets" not in batch:
            return torch.zeros(batch["x"].shape, dtype=torch.bool, device=batch["x"].device)
        return intervention_mask(batch["targets"], self.shape[0])

    def expected(self, x: Tensor, masks: Tensor) -> Tensor:
        """Return the standardised mean of each gene given the others [..., B, d], under the masks of G groups of cells.

        Cell i is in group i % G of the masks [..., G, d, m, C]; [d, m, C] are those of all. Weights are masked, or
        cells, whichever are fewer.
        """
        masks = masks[None] if masks.dim() == 3 else masks
        cells, groups = len(x), masks.shape[-4]
        z = F.pad((x - self.centre) / self.spread, (0, 0, 0, -cells % groups))
        z, into = z.reshape(-1, groups, self.shape[0]).transpose(0, 1), masks[..., 0]
        if self.rank is None:
            into = into * (1 - torch.eye(self.shape[0], device=x.device))
        first = self.w1 if self.mechanism == "mlp" else self.weight[:, None]
        if groups * first.shape[1] <= cells:
            masked = first.permute(2, 0, 1) * into[..., None]
            h = (z @ masked.flatten(-2)).unflatten(-1, masked.shape[-2:])
        else:
            h = torch.einsum("...df,fhd->...fh", z[..., None] * into[..., None, :, :], first)
        if self.mechanism == "mlp":
            h = torch.einsum("...fh,fgh->...fg", F.leaky_relu(h + self.w1_bias), self.w2) + self.w2_bias
            h = (F.leaky_relu(h) * self.w3[:, 0]).sum(-1) + self.w3_bias[:, 0]
        else:
            h = h[..., 0]
        if self.rank is not None:
            h = h @ (masks[..., 1] * self.decoder).mT
        return self.bias + h.transpose(-3, -2).flatten(-3, -2)[..., :cells, :]

    def conditional(self, batch: Batch, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation of each gene given the others, and which genes count; [..., B, d] each.

        For the masks see `expected`.
        """
        mean, on = self.expected(batch["x"], masks), self.intervened(batch)
        variance = self.log_variance.exp() + 1e-4
        if self.interventions == "imperfect":
            mean = torch.where(on, self.gain * mean + self.shift, mean)
            variance = torch.where(on, self.own_log_variance.exp() + 1e-4, variance)
            on = torch.zeros_like(on)
        return self.centre + self.spread * mean, self.spread * variance.sqrt(), ~on

    def one_step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, log density and whether it counts, of each gene given the others [B, d], by the settled graph.

        Before it is settled, by the graph that would be.
        """
        mean, scale, counts = self.conditional(batch, self.final_masks())
        return mean, dist.Normal(mean, scale).log_prob(batch["x"]), counts

    @torch.no_grad()
    def simulate(self, noise: Tensor, targets: Tensor, held: Tensor) -> Tensor:
        """Return cells [B, d] under interventions, by ancestral sampling in the settled graph.

        A sweep over the equations settles every gene whose parents are settled: as many sweeps as the longest path has
        genes give each gene its value given those of its parents, whatever the order.

        Parameters
        ----------
        noise : Tensor [B, d]
            Standard normal.
        targets : int64 Tensor [B, M]
            Codes of the genes intervened on, -1 for none.
        held : Tensor [B, d]
            What targets of perfect interventions are forced to.
        """
        masks, x = self.final_masks(), self.centre.expand(noise.shape).clone()
        forced = intervention_mask(targets, self.shape[0]) & (self.interventions == "perfect")
        for _ in range(self.shape[0] + 1):
            mean, scale, _ = self.conditional({"x": x, "targets": targets}, masks)
            new = torch.where(forced, held.to(x), mean + scale * noise.to(x))
            if torch.equal(new, x):
                break
            x = new
        return x

    def _draw(self, logits: Tensor, cells: pyro.plate) -> Tensor:
        """The site of the masks. Without a prior it has no density; with one, the draws of all groups count as one."""
        if self.masks is None:
            with pyro.poutine.mask(mask=False), cells:
                return pyro.sample("W", GumbelOneHot(logits=logits).to_event(2))
        weight = pyro.poutine.mask(mask=False) if self.prior is None else pyro.poutine.scale(scale=1 / self.masks)
        with weight:
            return pyro.sample("W", GumbelOneHot(logits=logits.expand(self.masks, *self.shape)).to_event(3))

    def model(self, batch: Batch) -> None:
        choices = self.shape[2]
        edge = 1 - 1 / choices if self.prior is None else self.prior
        prior = torch.full((choices,), edge / (choices - 1), device=batch["x"].device)
        prior[-1] = 1 - edge
        cells = self.cells(batch)
        masks = self._draw(prior.log().expand(self.shape), cells)
        if self.masks is not None and masks.dim() > 4:  # particles stand before a dimension for cells
            masks = masks.squeeze(-5)
        if self.masks not in (None, 1) and not self.training:  # by the number of a cell, whatever minibatch it is in
            masks = masks.index_select(-4, batch["index"] % self.masks)
        mean, scale, counts = self.conditional(batch, masks)
        with cells:
            pyro.deterministic("expected", mean, event_dim=1)
            pyro.sample("x", dist.Normal(mean, scale).mask(counts).to_event(1), obs=batch["x"])

    def guide(self, batch: Batch) -> None:
        self._draw(self.logits(), self.cells(batch))
