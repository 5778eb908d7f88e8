"""FCR: blocks of latents for the context of a cell, its treatment, and the interaction of both (Mao et al. 2024)."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.block_axes import assigned_blocks, block_axes, diagonal_axes
from fieldguide.catalog.parts.block_prior import SITES, BlockPrior, Law
from fieldguide.catalog.parts.coupled_prior import CoupledPrior
from fieldguide.catalog.parts.guides import Encoder
from fieldguide.catalog.parts.networks import Layers, one_hot
from fieldguide.catalog.parts.observation import Observation, observed_size
from fieldguide.catalog.parts.pair_critic import PairCritic, within_groups
from fieldguide.catalog.parts.turning import turn
from fieldguide.inference import ELBO, Category, Counts, Doses, Perturbations, Program, Schema, SizeFactor, Values
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Number, Share, Size, Weight, checked
from fieldguide.inference.program import Batch
from fieldguide.inference.step import Losses, add_term, by_group
from fieldguide.inference.training.processes import mean_over_processes

TURN = 0.5
"""Share of the training after which the latents are turned to the axes of their blocks."""
FINEST = 1e-7
"""Least difference of doses, as shares of the largest."""
SLOPE = 0.2
"""Of the leaky rectifiers: networks of them may be injective, as the theory asks of the decoder."""


@entry(
    "fcr",
    title="FCR: blocks of latents for the context of a cell, its treatment, and what the treatment does there alone",
    schema=Schema(
        counts=Counts("X", optional=True),
        values=Values("", optional=True),
        context=Category("context"),
        perturbation=Perturbations("perturbation", needs_control=True),
        dose=Doses("", optional=True),
        size_factor=SizeFactor("", optional=True),
    ),
    objective=ELBO(kl="analytic"),
    supports=("elbo", "iwae", "renyi", "vrmax", "wake", "chi", "forward_kl"),
    defaults={"learning_rate": 3e-3, "cooldown": 0.3},
    cite="""
@inproceedings{mao2024learning,
  title = {Learning Identifiable Factorized Causal Representations of Cellular Responses},
  author = {Mao, Haiyi and Lopez, Romain and Liu, Kai and Huetter, Jan-Christian and Richmond, David and
    Benos, Panayiotis V. and Qiu, Lin},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {37},
  year = {2024},
  note = {arXiv:2410.22472}
}""",
)
class FCR(Program):
    r"""FCR, factorised causal representation of cells in several contexts (lines, donors) under several treatments.

    For a cell of context c under treatment t, with counts or values y [G]::

        z_x ~ Normal(m_x(c), s_x(c))      z_t ~ Normal(m_t(t), s_t(t))      z_tx ~ Normal(m_tx(c, t), s_tx(c, t))
        u = decoder(z_x, z_tx, z_t)
        y_j ~ NegativeBinomial(mean l * softmax(u)_j, inverse dispersion theta_j)      or Normal(u_j, noise_j)

    Perturbations of one cell, times their doses, add up in means and log scales. The guide does not see context and
    treatment, unless ``labels=True``: what it says of them it has from the expression of the cell.

    A prior of three blocks identifies them where enough conditions differ in mean and scale; but which block a latent
    ends in is settled early in the training, by chance, and gradients do not undo it. So in its first half no block has
    a prior of its own: latents have one Gaussian prior for each condition, free in means and correlations. Then they
    are turned to the axes in which they are independent in all conditions, each axis is given to the block that its
    means and scales speak for (`fieldguide.catalog.parts.block_axes`), and the three priors set in.

    Sites: ``z_x``, ``z_tx``, ``z_t`` (those of at least one latent); outside training ``rho`` [G] (proportions), or
    ``mean`` [G]; ``counts`` or ``values`` [G].

    Parameters
    ----------
    n_genes, n_values : int
        G; one of them is 0. With ``fields={"counts": None, "values": "X"}`` the observation is Gaussian.
    n_context, n_perturbation : int
        Filled in by ``fit``, as G is.
    n_latent_x, n_latent_tx, n_latent_t : int
        Latents of each block; 0 leaves it out. Without ``z_tx`` contexts and treatments add up in the latents.
    n_hidden, n_layers : int
        Size of the networks.
    dropout : float
        Of the encoders.
    axes : {"turned", "free"}
        "free": the three priors from the start, as published.
    interaction : {"free", "centred"}
        "centred": the means of ``z_tx`` are centred over contexts and over treatments.
    labels : bool
        Whether the guides see context and treatment, as published: q(z_x | y, c), q(z_t | y, t), q(z_tx | y, c, t).
        It needs ``axes="free"``.
    critic : float
        Weight of two critics, in nats a cell, that the guides learn to fool: whether z_x and z_tx are of one cell among
        those of a context, and z_t and z_tx among those of a treatment. 0 for none. The same is asked, by kernels and
        without a critic, by ``constraints=[hsic("z_x", "z_tx", given=...), hsic("z_t", "z_tx", given=...)]``.
    """

    latent = "z_tx"
    warmup = SITES
    kept = ("z_x",)
    turned: Tensor
    alone: Tensor

    @checked
    def __init__(
        self,
        n_genes: Number = 0,
        n_values: Number = 0,
        n_context: Size = 1,
        n_perturbation: Size = 1,
        n_latent_x: Number = 5,
        n_latent_tx: Number = 5,
        n_latent_t: Number = 5,
        n_hidden: Size = 128,
        n_layers: Size = 2,
        dropout: Share = 0.0,
        axes: str = "turned",
        interaction: str = "free",
        labels: bool = False,
        critic: Weight = 0.0,
    ) -> None:
        super().__init__()
        n_out = observed_size(n_genes, n_values)
        one_of("axes", axes, ("turned", "free"))
        one_of("interaction", interaction, ("free", "centred"))
        if labels and axes == "turned":
            raise ValueError("labels=True needs axes='free': guides that see labels cannot be turned")
        self.sizes = dict(zip(SITES, (n_latent_x, n_latent_tx, n_latent_t), strict=True))
        if not sum(self.sizes.values()):
            raise ValueError("n_latent_x, n_latent_tx and n_latent_t are all 0: there must be a latent")
        if critic and not (n_latent_tx and (n_latent_x or n_latent_t)):
            raise ValueError("critic needs latents in z_tx and in another block: there is nothing to be independent of")
        self.axes, self.labels, self.n_context, self.n_perturbation = axes, labels, n_context, n_perturbation
        self.latent = next(site for site in ("z_tx", "z_t", "z_x") if self.sizes[site])
        size = {"n_layers": n_layers, "dropout": dropout, "batch_norm": False, "slope": SLOPE}
        if labels:
            seen = {"z_x": n_context, "z_tx": n_context + n_perturbation, "z_t": n_perturbation}
            self.encoder_blocks = nn.ModuleDict(
                {s: Encoder(n_out + seen[s], n, n_hidden, **size) for s, n in self.sizes.items() if n}
            )
        else:
            self.encoder = Encoder(n_out, sum(self.sizes.values()), n_hidden, **size)
        self.prior = BlockPrior(n_context, n_perturbation, self.sizes, interaction == "centred")
        self.decoder = Layers(sum(self.sizes.values()), n_hidden, n_layers, batch_norm=False, slope=SLOPE)
        self.observation = Observation(n_genes, n_values, n_hidden)
        self.register_buffer("turned", torch.tensor(axes == "free"))
        self.register_buffer("alone", torch.tensor(False))
        self.critic = critic
        self.critics: Any = nn.ModuleDict()
        if critic:
            pairs = [site for site in ("z_x", "z_t") if self.sizes[site] and n_latent_tx]
            self.critics.update({site: PairCritic(self.sizes[site], n_latent_tx) for site in pairs})
        self.pending: list[CoupledPrior] = []  # no part of the program before training
        self.coupled: CoupledPrior | None = None
        self.register_load_state_dict_pre_hook(_with_coupled)
        self.by_dose = False

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Count the training cells of each condition, and make a prior for each, if the latents are to be turned."""
        seen = []
        for batch in batches:
            codes = batch["perturbation"]
            if "dose" in batch and (batch["dose"].shape != codes.shape or ((batch["dose"] != 0) & (codes < 0)).any()):
                raise ValueError(
                    "doses and perturbations differ in what is a control: give Doses and Perturbations one"
                )
            seen.append((batch["context"], codes, self.conditions(batch)))
        self.by_dose = bool(seen) and seen[0][2].shape[1] > 1 + seen[0][1].shape[1]
        context, codes, conditions = (torch.cat(parts) for parts in zip(*seen, strict=True))
        self.prior.count(context, codes)
        self.alone.fill_(bool((self.prior.pairs[:, 0] == 0).any()))
        if not bool(self.turned):
            self.pending = [CoupledPrior(conditions, sum(self.sizes.values()))]

    def model(self, batch: Batch) -> None:
        with self.cells(batch):
            z: list[Tensor] = []
            laws = self.laws(batch)
            rows = None if self.coupled is None else self.coupled.rows(self.conditions(batch))
            for site, law in laws.items():
                if self.coupled is None or rows is None:
                    prior: Any = dist.Normal(law.loc, law.total).to_event(1)
                else:
                    prior = self.coupled.block(rows, z, self.sizes[site])
                z.append(pyro.sample(site, prior))
            self.observation(self.decoder(torch.cat(z, -1)), batch)

    def guide(self, batch: Batch) -> None:
        with self.cells(batch):
            for site, posterior in self.encoded(batch).items():
                pyro.sample(site, posterior)

    def laws(self, batch: Batch) -> dict[str, Law]:
        """Prior of each block for the cells of a minibatch."""
        return self.prior.laws(batch["context"], batch["perturbation"], batch.get("dose"))

    def encoded(self, batch: Batch) -> dict[str, Distribution]:
        """Guide of each block for the cells of a minibatch."""
        y = self.observation.features(batch)
        if not self.labels:
            base: Any = self.encoder(y).base_dist  # pyright: ignore[reportAttributeAccessIssue]
            used = {site: n for site, n in self.sizes.items() if n}
            parts = zip(*(v.split(list(used.values()), -1) for v in (base.loc, base.scale)), strict=True)
            return {site: dist.Normal(*part).to_event(1) for site, part in zip(used, parts, strict=True)}
        context = one_hot(batch["context"], self.n_context)
        codes = batch["perturbation"]
        weight = (codes >= 0).to(y) * batch.get("dose", torch.ones((), device=y.device))
        treatment = (weight.unsqueeze(-1) * one_hot(codes.clamp(min=0), self.n_perturbation)).sum(-2)
        seen = {"z_x": (context,), "z_tx": (context, treatment), "z_t": (treatment,)}
        return {site: encoder(torch.cat((y, *seen[site]), -1)) for site, encoder in self.encoder_blocks.items()}

    # ---- training ------------------------------------------------------------------------------------------
    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Set the prior of each condition to the latents of its cells; in the middle of the training turn the axes."""
        moving = self.decoder.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if moving and self.pending and "progress" in step.scalars:
            self.coupled = self.pending.pop().to(step.batch["context"].device)
        if moving and self.coupled is not None:
            if float(step.scalars.get("progress", 0.0)) >= TURN:
                self.turn_axes()
            else:
                with torch.no_grad():
                    base: Any = self.encoder(self.observation.features(step.batch)).base_dist
                self.coupled.update(base.loc, base.scale, self.coupled.rows(self.conditions(step.batch)))
        losses = objective(step)
        return self.criticised(step, losses) if self.training and self.critics else losses

    def criticised(self, step: Any, losses: Losses) -> Losses:
        """Return the losses with those of the critics, a parameter group, and of the guide that they catch."""
        codes = torch.unique(step.batch["perturbation"], dim=0, return_inverse=True)[1]
        groups, both = {"z_x": step.batch["context"], "z_t": codes}, step.draw("z_tx")
        total: Any = 0.0
        for site, critic in self.critics.items():
            one, order = step.draw(site), within_groups(groups[site])
            losses = add_term(by_group(losses), self.critic * critic.losses(one, both, order)[1], "phi")
            caught = critic.losses(one.detach(), both.detach(), order)[0]
            step.log(f"critic_{site}", caught)
            total = total + caught
        return by_group(losses) | {"critic": total}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Model ``theta``, guide ``phi``, and ``critic`` where there is one."""
        groups = super().groups()
        if self.critics:
            critics = {id(p) for p in self.critics.parameters()}
            groups["theta"] = [p for p in groups["theta"] if id(p) not in critics]
            groups["critic"] = list(self.critics.parameters())
        return groups

    def conditions(self, batch: Batch) -> Tensor:
        """Context, perturbations and doses (two digits, in units of `FINEST`) of each cell, int64 [B, 1 + 2 M]."""
        parts = [batch["context"].unsqueeze(-1), batch["perturbation"]]
        if "dose" in batch:
            dose = batch["dose"].double()
            digit = 10 ** (dose.clamp(min=10 * FINEST).log10().floor() - 1)
            parts.append(((dose / digit).round() * digit / FINEST).round().long())
        return torch.cat(parts, -1)

    @torch.no_grad()
    def turn_axes(self) -> None:
        """Turn the latents to the axes of blocks, and start the priors of the blocks there."""
        coupled = self.coupled
        assert coupled is not None
        mean_over_processes(coupled.mean, coupled.covariance)
        cells, kinds = coupled.cells.cpu().double(), coupled.kinds.cpu().numpy()
        mean, covariance = coupled.mean[:-1].cpu().double(), coupled.covariance[:-1].cpu().double()
        axes = diagonal_axes(covariance, cells)
        origin = (cells / cells.sum()) @ mean
        treatment = np.unique(kinds[:, 1:], axis=0, return_inverse=True)[1].ravel()
        context = np.unique(kinds[:, 0], return_inverse=True)[1].ravel()  # those that training has
        moments = _moments(axes, mean - origin, covariance)
        sizes = tuple(self.sizes.values())
        order = assigned_blocks(*moments, cells.numpy(), context, treatment, sizes)
        conditions = torch.as_tensor(context), torch.as_tensor(treatment)
        axes = block_axes(axes[order], mean - origin, covariance, cells, *conditions, sizes)
        means, variances = _moments(axes, mean - origin, covariance)
        turn(self.encoder, self.decoder, axes.to(coupled.mean), origin.to(coupled.mean))
        width = (kinds.shape[1] - 1) // (2 if self.by_dose else 1)
        dose = kinds[:, 1 + width :] * FINEST if self.by_dose else np.ones((len(kinds), width))
        begin = 0
        for site, size in self.sizes.items():
            ours = slice(begin, begin + size)
            begin += size
            if size:
                self.prior.start(site, means[:, ours], variances[:, ours], cells.numpy(), kinds[:, : 1 + width], dose)
        self.coupled = None
        self.turned.fill_(True)

    def tried(self, batch: Batch) -> Tensor:
        """Whether training had cells of each part of the treatment in the context, and controls there, bool [B]."""
        context, codes = batch["context"], batch["perturbation"]
        pairs = self.prior.pairs[context.unsqueeze(-1), codes + 1] > 0
        return (pairs | (codes < 0)).all(-1) & (self.prior.pairs[context, 0] > 0)

    def unfinished(self) -> bool:
        """Whether the axes have yet to be turned."""
        return not bool(self.turned)

    def remarks(self) -> list[str]:
        said = []
        if self.unfinished():
            said.append(
                "the latents were not turned to the axes of blocks: train beyond the middle, without compile=True, or "
                "with axes='free'"
            )
        if self.n_context == 1:
            said.append("there is one context: nothing can be particular to it, and no other says what pairs do")
        if self.alone:
            without = ", ".join(f"{{context {k}}}" for k in torch.nonzero(self.prior.pairs[:, 0] == 0).ravel().tolist())
            said.append(
                f"no control of the context {without} is among the training cells: what a treatment adds there is told "
                "from the context by its other treatments alone"
            )
        return said


def _moments(axes: Tensor, mean: Tensor, covariance: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances [K, D] of conditions along axes."""
    return (mean @ axes.T).numpy(), (axes @ covariance @ axes.T).diagonal(dim1=-2, dim2=-1).numpy()


def _with_coupled(program: Any, state: dict[str, Tensor], *_: Any) -> None:
    """Give the program the prior of conditions that a training which ended before the turn has left, or none."""
    program.coupled = None
    if "coupled.kinds" in state:
        program.coupled = CoupledPrior(state["coupled.kinds"], sum(program.sizes.values()))
