"""NODAGS-Flow: a graph with cycles from interventions, by the likelihood of a steady state (Sethuraman et al. 2023)."""

from collections.abc import Iterable

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.contractive import ContractiveMap
from fieldguide.catalog.parts.log_determinant import LOG_DETS, safe_stop
from fieldguide.catalog.parts.observational_moments import unforced
from fieldguide.catalog.parts.steady_state import SteadyState, steady_state
from fieldguide.inference import ELBO, Matrix, Program, Schema
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Chance, Number, Part, Size, Weight, checked
from fieldguide.inference.data.interventions import Targets, intervention_mask
from fieldguide.inference.program import Batch
from fieldguide.inference.step import add_term


@entry(
    "nodags",
    title="NODAGS-Flow: cyclic causal graphs from interventions, by the likelihood of a contractive flow",
    schema=Schema(x=Matrix("X"), targets=Targets(optional=True)),
    objective=ELBO(),
    supports=("elbo",),
    defaults={"max_epochs": 40, "learning_rate": 1e-2, "epsilon": 1e-8, "cooldown": 0.3},
    cite="""
@inproceedings{sethuraman2023nodags,
  title = {{NODAGS-Flow}: Nonlinear cyclic causal structure learning},
  author = {Sethuraman, Muralikrishnna G. and Lopez, Romain and Mohan, Rahul and Fekri, Faramarz and Biancalani, Tommaso
            and H{\\"u}tter, Jan-Christian},
  booktitle = {Proceedings of The 26th International Conference on Artificial Intelligence and Statistics},
  series = {Proceedings of Machine Learning Research},
  volume = {206},
  pages = {6371--6387},
  year = {2023}
}""",
)
class NODAGS(Program):
    r"""Steady states of a contractive map, observed under interventions on known genes.

    For each cell with targets I, and U the diagonal matrix that is 0 at the targets and 1 elsewhere::

        e_i ~ Normal(loc_i, scale_i)
        x = U (f(x) + e) + c                        c: the values that the targets were forced to
        log p(x) = sum of log Normal(x_i - f_i(x)) over the genes i outside I, + log |det(I - U J_f(x))|

    f is a `ContractiveMap`; no gene acts on itself. There are no latents and the guide is empty: the ELBO is the
    log likelihood. Minibatches may mix interventions. Cells without a target help to estimate the noise; a graph with
    cycles is identified by interventions (for a linear map, by one on every single gene).

    Sites: ``x``, and in its cells ``noise`` [n] (x - f(x), in units of x) and ``log_det``.

    The log-determinant is exact by default: with one linear map for all cells it takes one factorisation for a
    minibatch, otherwise one for each cell. Estimates serve in training alone; held-out values are always exact.

    Parameters
    ----------
    n_features : int
        n; filled in by ``fit``.
    activation : {"none", "tanh", "relu", "selu", "gelu"}
        "none": a linear map.
    n_hidden : int
        Hidden units of each gene's own network; 0 for one layer.
    contraction : float, optional
        Bound on the slope of f. None: no bound; the exact log-determinant needs none, but there may then be no steady
        state, or several, and `fieldguide.catalog.sample_under` may fail.
    precondition : bool
        Learn scales of the genes in which f is contractive, for maps that are so in no other way: all acyclic ones.
    gates : {"none", "shared", "per_cell"}
        Whether edges are relaxed Bernoulli gates, as published ("per_cell"); their probabilities are the edges.
    log_det : {"exact", "series", "roulette"}
    terms : int
        Of the series.
    stop : float, optional
        Chance that the roulette ends after a term (published: 0.5, with infinite variance for slopes above 0.71); by
        default the largest that keeps the variance finite, `safe_stop`.
    sparsity : float
        Weight of the sum of all edges' sizes (absolute weights, or probabilities of gates) beside the mean negative log
        likelihood of a cell, in training.
    """

    latent = "noise"
    centre: Tensor

    @checked
    def __init__(
        self,
        n_features: int,
        activation: str = "none",
        n_hidden: Number = 0,
        contraction: Chance | None = 0.99,
        precondition: bool = False,
        gates: str = "none",
        log_det: str = "exact",
        terms: Size = 10,
        stop: Part | None = None,
        sparsity: Weight = 0.01,
    ) -> None:
        super().__init__()
        one_of("log_det", log_det, LOG_DETS)
        if contraction is None and log_det != "exact":
            raise ValueError(f"log_det={log_det!r} needs a contractive map: give contraction, or log_det='exact'")
        self.map = ContractiveMap(n_features, activation, n_hidden, contraction, gates, precondition)
        self.loc = nn.Parameter(torch.zeros(n_features))
        self.log_noise = nn.Parameter(torch.zeros(n_features))
        self.log_det, self.terms, self.sparsity = log_det, terms, sparsity
        self.stop = safe_stop(contraction or 0.0) if stop is None else stop
        self.register_buffer("centre", torch.zeros(n_features))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Centre the data: at the mean of the cells without a target, or of those where a gene is no target."""
        moments = unforced(batches, lambda batch: intervention_mask(self.targets_of(batch), batch["x"].shape[1]))
        if moments.always:
            gene = moments.always[0]
            raise ValueError(f"{gene} is a target in every training cell: nothing acts on it; leave it out")
        self.centre.copy_(moments.centre if moments.control is None else moments.control)
        self._said = moments.remarks

    def remarks(self) -> list[str]:
        return list(getattr(self, "_said", ()))

    def targets_of(self, batch: Batch) -> Tensor:
        """Return the targets of a minibatch [B, M]; none, if the data have none."""
        x = batch["x"]
        return batch.get("targets", torch.full((len(x), 1), -1, dtype=torch.int64, device=x.device))

    def state(self, targets: Tensor, values: Tensor | None = None) -> SteadyState:
        """Return the distribution of cells with these targets [B, M], around `centre`."""
        method = self.log_det if self.training else "exact"
        mechanism = self.map.settle(len(targets))
        return SteadyState(mechanism, self.loc, self.log_noise.exp(), targets, method, self.terms, self.stop, values)

    def model(self, batch: Batch) -> None:
        x = batch["x"] - self.centre
        state = self.state(self.targets_of(batch))
        noise, log_det = state.terms(x)
        with self.cells(batch):
            pyro.deterministic("noise", noise, event_dim=1)
            pyro.deterministic("log_det", log_det)
            pyro.sample("x", state, obs=x)

    def guide(self, batch: Batch) -> None:
        """There are no latents."""

    def one_step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, log density and whether it counts, of each gene given the others [B, n].

        The log-determinant of a cell is shared out evenly among the genes that count.
        """
        x = batch["x"] - self.centre
        state = self.state(self.targets_of(batch))
        noise, log_det = state.terms(x)
        counts = ~state.forced
        share = log_det / counts.sum(-1).clamp(min=1)
        density = Normal(state.loc, state.scale, validate_args=False).log_prob(noise) + share[:, None]
        return batch["x"] - noise + self.loc, density, counts

    @torch.no_grad()
    def simulate(
        self, noise: Tensor, targets: Tensor, held: Tensor, tolerance: float = 1e-6, max_iterations: int = 10_000
    ) -> Tensor:
        """Return cells [B, n] under interventions: steady states, by fixed-point iteration in float64.

        Parameters
        ----------
        noise : Tensor [B, n]
            Standard normal.
        targets : int64 Tensor [B, M]
            Codes of the forced genes, -1 for none.
        held : Tensor [B, n]
            What they are forced to.
        tolerance, max_iterations
            Of `fieldguide.catalog.parts.steady_state.steady_state`.
        """
        centre, forced = self.centre.double(), intervention_mask(targets, len(self.centre))
        e = self.loc.double() + self.log_noise.exp().double() * noise.double()
        values = torch.where(forced, held.double() - centre, 0.0)
        mechanism = self.map.settle().to(e)
        return steady_state(mechanism, e, forced, values, tolerance, max_iterations) + centre

    def training_loss(self, step, objective):
        """Return the objective's loss; in training, with the penalty on edges."""
        losses = objective(step)
        if not self.training or not self.sparsity:
            return losses
        penalty = self.sparsity * self.map.sizes().sum()
        return add_term(losses, penalty, "theta")
