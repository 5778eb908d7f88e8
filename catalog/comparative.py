"""Comparative deep generative models: latents that groups share, and those that only some have (Lopez et al. 2024)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import Encoder
from fieldguide.catalog.parts.networks import Layers, one_hot
from fieldguide.catalog.parts.observation import Observation, observed_size
from fieldguide.catalog.parts.ranking import Ranking
from fieldguide.inference import ELBO, Category, Counts, Groups, Program, Schema, SizeFactor, Values
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Number, Share, Size, checked
from fieldguide.inference.program import Batch
from fieldguide.inference.randomness import isolated
from fieldguide.inference.step import Step

RANKED = (0.3, 0.5)
"""Shares of the training after which the number of shared latents is chosen, and then those of the others."""
JUDGED = 8
"""Minibatches that the number is chosen by."""
DRAWS = 2


@entry(
    "comparative",
    title="Comparative (contrastive) model: latents that all groups share, and salient ones that only some have",
    schema=Schema(
        counts=Counts("X", optional=True),
        values=Values("", optional=True),
        group=Groups("group"),
        batch=Category("batch", optional=True),
        size_factor=SizeFactor("", optional=True),
    ),
    objective=ELBO(kl="analytic"),
    supports=("elbo", "iwae", "renyi", "vrmax", "wake", "chi", "forward_kl"),
    defaults={"learning_rate": 4e-3},
    cite="""
@inproceedings{lopez2024toward,
  title = {Toward the Identifiability of Comparative Deep Generative Models},
  author = {Lopez, Romain and Huetter, Jan-Christian and Hajiramezanali, Ehsan and Pritchard, Jonathan K. and
    Regev, Aviv},
  booktitle = {Proceedings of the Third Conference on Causal Learning and Reasoning},
  series = {Proceedings of Machine Learning Research},
  volume = {236},
  pages = {868--912},
  year = {2024}
}""",
)
class Comparative(Program):
    r"""Groups of cells with latents in common and latents of their own.

    A table M [groups, blocks] says which group uses which block of latents. For a cell of group g, with counts x [G]::

        v_b ~ Normal(0, I) for each block b        u_b = M_gb v_b
        rho = softmax(decoder(u, batch))
        x_j ~ NegativeBinomial(mean l * rho_j, inverse dispersion theta_gj)    l: total count, or size factor

    The first block is ``z``, shared as a rule; all others together are ``s``, the salient latents. Blocks that a group
    does not use are zero in its cells, and have their prior as guide.

    With a decoder of rectifiers and as many latents as there are, each block is identified up to a rotation. With too
    many, salient latents say again what the shared ones say, and shared ones what is salient, at no cost in likelihood.
    So latents are ranked, then cut off where more of them gain little (`dimensions`): the shared ones in the first
    three tenths of the training, by cells that have no others, and then the salient ones by those that have both; see
    `fieldguide.catalog.parts.ranking`. Every group counts the same in training, however many cells it has (`balance`).

    Sites: ``z`` [D], ``s`` [E], ``rho`` [G] (proportions; outside training), ``counts`` [G].

    Parameters
    ----------
    n_genes, n_values : int
        G; one of them is 0. With ``fields={"counts": None, "values": "X"}``, for real numbers, the observation is
        Gaussian around ``mean`` [G], and has the noise of its group.
    n_group, n_background, n_batch : int
        What the data implies; filled in by ``fit``, as G is. Groups of the background come first.
    n_latent, n_salient : int
        Of the shared block, and of each other block; with ``dimensions="learned"`` the most of them.
    table : {"contrastive", "multigroup"} or sequence of sequences
        Contrastive: the background uses the shared block, all others the salient one, too. Multigroup: each group has a
        block of its own beside the shared one. Else M itself, 0 or 1, a row for each group, the shared block first.
    dimensions : {"learned", "fixed"}
    least : float
        Share of what all latents of a block gain over its first one, in the bound, that those which are cut off may
        have. A gain that may be chance counts for nothing: a group that is no different has no salient latents.
    balance : bool
        Whether each group counts the same in the gradients; otherwise each cell.
    n_hidden, n_layers : int
        Size of the networks. With ``n_layers=0`` the decoder is linear, and the encoders have one layer.
    dropout : float
        Of the encoders.
    likelihood : {"nb", "zinb", "poisson"}, or a sequence of them
        Of counts: of all groups, or of each, in the order of the rows of ``table``: the background, then by name.
    """

    latent = "z"
    warmup = ("z", "s")
    uses: Tensor
    stage: Tensor
    judged: Tensor
    share: Tensor
    nested: Tensor

    @checked
    def __init__(
        self,
        n_genes: Number = 0,
        n_values: Number = 0,
        n_group: Size = 1,
        n_background: Number = 0,
        n_batch: Size = 1,
        n_latent: Size = 10,
        n_salient: Size = 10,
        table: Any = "contrastive",
        dimensions: str = "learned",
        least: Share = 0.035,
        balance: bool = True,
        n_hidden: Size = 128,
        n_layers: Number = 2,
        dropout: Share = 0.0,
        likelihood: str | Sequence[str] = "nb",
    ) -> None:
        super().__init__()
        n_out = observed_size(n_genes, n_values)
        if n_values and likelihood != "nb":
            raise ValueError("likelihood is one of counts: values are Gaussian, with the noise of each group")
        one_of("dimensions", dimensions, ("learned", "fixed"))
        self.n_batch, self.least, self.balance = n_batch, least, balance
        uses = uses_of(table, n_group, n_background)
        n_blocks = uses.shape[1] - 1
        n_covariates = n_batch if n_batch > 1 else 0
        encoder = {"n_layers": max(n_layers, 1), "dropout": dropout, "batch_norm": bool(n_genes)}
        self.encoder_z = Encoder(n_out, n_latent, n_hidden, **encoder)
        self.encoder_s = Encoder(n_out, n_blocks * n_salient, n_hidden, **encoder)
        self.decoder = Layers(n_latent + n_blocks * n_salient, n_hidden, n_layers, n_covariates, batch_norm=False)
        self.observation = Observation(n_genes, n_values, self.decoder.width, likelihood, n_group)
        self.rankings: Any = nn.ModuleList(Ranking(size, JUDGED) for size in (n_latent, *[n_salient] * n_blocks))
        self.register_buffer("uses", uses)
        self.register_buffer("prior_z", torch.zeros(n_latent))
        self.register_buffer("prior_s", torch.zeros(n_blocks * n_salient))
        self.register_buffer("stage", torch.tensor(len(RANKED) if dimensions == "fixed" else 0))
        self.register_buffer("judged", torch.tensor(0))
        self.register_buffer("share", torch.ones(n_group))
        self.register_buffer("nested", torch.tensor(False))
        self.cuts: list[Tensor] | None = None

    # ---- which latents a cell has -------------------------------------------------------------------------
    def live(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which latents of z [B, D] and of s [B, E] are in use in each cell."""
        uses = self.uses[batch["group"]]
        blocks = [ranking.keep * uses[:, [b]] for b, ranking in enumerate(self.rankings)]
        if self.cuts is not None:
            blocks = [block * cut for block, cut in zip(blocks, self.cuts, strict=True)]
        return blocks[0], torch.cat(blocks[1:], -1)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Learn the share of each group among the training cells, and whether batches are nested in groups."""
        pairs = [(batch["group"], batch.get("batch", torch.zeros_like(batch["group"]))) for batch in batches]
        group, lot = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        self.share.copy_(torch.bincount(group, minlength=len(self.share)) / len(group))
        together = torch.zeros(self.n_batch, len(self.share))
        together[lot, group] = 1
        self.nested.fill_(self.n_batch > 1 and bool((together.sum(1) <= 1).all()))

    def model(self, batch: Batch) -> None:
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.prior_z, 1.0).to_event(1))
            s = pyro.sample("s", dist.Normal(self.prior_s, 1.0).to_event(1))
            live_z, live_s = self.live(batch)
            hidden = self.decoder(torch.cat((z * live_z, s * live_s), -1), self.covariates(batch))
            self.observation(hidden, batch, batch["group"])

    def guide(self, batch: Batch) -> None:
        features, (live_z, live_s) = self.observation.features(batch), self.live(batch)
        with self.cells(batch):
            for name, encoder, live in (("z", self.encoder_z, live_z), ("s", self.encoder_s, live_s)):
                pyro.sample(name, limited(encoder(features), live))

    # ---- training ------------------------------------------------------------------------------------------
    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Count groups alike, and rank the latents until their numbers are chosen: the shared ones, then the others."""
        if self.balance:
            step.cell_weights = self.cell_weights[step.batch["group"]]
        moving = self.decoder.training and torch.is_grad_enabled()  # and not held out, nor frozen below a new guide
        if not moving or torch.compiler.is_compiling() or not self.unfinished():
            return objective(step)
        if float(step.scalars.get("progress", 0.0)) >= RANKED[int(self.stage)]:
            self.judge(step.batch)
        if self.unfinished():
            self.cuts = self.random_cuts(step.batch["group"])
        try:
            return objective(step)
        finally:
            self.cuts = None

    @property
    def cell_weights(self) -> Tensor:
        """Weight of each cell of a group [groups], so that all groups count alike; 1 where training has none."""
        return torch.where(self.share > 0, 1 / (len(self.share) * self.share.clamp(min=1e-9)), 1.0)

    def ranked(self) -> range:
        """Return the blocks that are ranked at this stage."""
        return range(1) if int(self.stage) == 0 else range(1, len(self.rankings))

    def random_cuts(self, group: Tensor) -> list[Tensor]:
        """Return random cuts of the blocks that are ranked, and all latents of the others, [B, D] each."""
        cuts = [ranking.first(ranking.size).expand(len(group), -1) for ranking in self.rankings]
        for b in self.ranked():
            cuts[b] = self.rankings[b].random(len(group))
        return cuts

    def judge(self, batch: Batch) -> None:
        """Take the bound of a minibatch with the first k latents of a block, for each k; after the last, choose."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        with torch.no_grad():
            for b in self.ranked():
                rows = self.judges(b, batch["group"])
                cells = {name: values[rows] for name, values in batch.items()}
                if rows.any():
                    ranking = self.rankings[b]
                    ranking.judge(torch.stack([self.bound(cells, b, k) for k in range(ranking.size + 1)]))
        for module, mode in modes.items():
            module.training = mode
        self.judged += 1
        if self.judged >= JUDGED:
            for b in self.ranked():
                self.rankings[b].cut(self.least, fewest=int(b == 0))
            self.stage += 1
            self.judged.zero_()

    def judges(self, block: int, group: Tensor) -> Tensor:
        """Return which cells [B] say how many latents a block needs: of groups that use it and fewest others."""
        users = self.uses[:, block] > 0
        others = torch.where(users, self.uses.sum(1), torch.inf)
        return (users & (others == others.min()))[group]

    def bound(self, batch: Batch, block: int, count: int) -> Tensor:
        """Return the mean bound of cells with the first latents of a block alone; equal draws for each count."""
        cells = len(batch["group"])
        self.cuts = [r.first(count if b == block else r.size).expand(cells, -1) for b, r in enumerate(self.rankings)]
        with isolated(batch["group"].device, 0):
            weights = Step(self, batch).weights(DRAWS)
        self.cuts = None
        return weights.log_w.double().mean()

    def unfinished(self) -> bool:
        """Whether the number of latents has yet to be chosen."""
        return int(self.stage) < len(RANKED)

    def remarks(self) -> list[str]:
        said = []
        if self.unfinished():
            said.append(
                "the number of latents was not chosen: train for longer, without compile=True, or dimensions='fixed'"
            )
        full = [f"block {b}" if b else "z" for b, r in enumerate(self.rankings) if r.size > 2 and r.keep.all()]
        if not self.unfinished() and int(self.rankings[0].judged) and full:
            said.append(
                f"all latents were kept of {', '.join(full)}: there may be more, or the training was too short to tell "
                "which are needed"
            )
        if not self.unfinished() and bool(self.rankings[0].useless):
            said.append(
                "no shared latent said anything yet when their number was chosen: train for longer, or "
                "dimensions='fixed'"
            )
        if self.nested:
            said.append(
                "each batch has cells of one group only: what differs between batches is in the salient latents"
            )
        return said

    @property
    def n_used(self) -> tuple[int, ...]:
        """Number of latents in use, of the shared block and of each other."""
        return tuple(int(ranking.keep.sum()) for ranking in self.rankings)

    def covariates(self, batch: Batch) -> Tensor | None:
        """Batch of each cell [B, n_batch], or None where there is one."""
        return one_hot(batch["batch"], self.n_batch) if self.n_batch > 1 else None


def limited(full: Any, live: Tensor) -> Distribution:
    """Return a Gaussian guide where latents are in use [B, D], and their prior elsewhere."""
    base = full.base_dist
    return dist.Normal(base.loc * live, base.scale * live + 1 - live).to_event(1)


def uses_of(table: Any, n_group: int, n_background: int) -> Tensor:
    """Return M [groups, blocks], 0 or 1.

    Raises
    ------
    ValueError
        If the background is not known, or the table does not fit the groups.
    """
    if isinstance(table, str):
        one_of("table", table, ("contrastive", "multigroup"))
        if table == "multigroup":
            return torch.cat((torch.ones(n_group, 1), torch.eye(n_group)), 1)
        if not n_background:
            raise ValueError(
                "table='contrastive' needs a background: name it, fields={'group': Groups(column, background=label)}, "
                "or table='multigroup'"
            )
        uses = torch.ones(n_group, 2)
        uses[:n_background, 1] = 0
        return uses
    table = table.tolist() if isinstance(table, np.ndarray) else table
    rows = [list(row) if isinstance(row, Sequence) else [] for row in table] if isinstance(table, Sequence) else []
    wide = {len(row) for row in rows}
    if len(rows) != n_group or len(wide) != 1 or max(wide) < 2 or any(v not in (0, 1) for row in rows for v in row):
        raise ValueError(_wanted(table, n_group))
    uses = torch.tensor(rows, dtype=torch.float32)
    if not uses.any(1).all() or not uses.any(0).all():
        raise ValueError(f"{_wanted(table, n_group)}; each group uses a block, and each block has a group")
    return uses


def _wanted(table: Any, n_group: int) -> str:
    return (
        f"table must have a row of 0 and 1 for each of the {n_group} groups, with one block at least beside the shared "
        f"one, not {table!r:.80}"
    )
