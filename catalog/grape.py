"""GRAPE: genes by a game of style transfer between a generator and a critic (Bigverdi et al. 2024)."""

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.images.networks import turned_and_flipped
from fieldguide.catalog.parts.images.style_blocks import Mapping, StyleEncoder, StyleGenerator, kaiming
from fieldguide.inference import ELBO, Balanced, Images, Program, Schema, Supervision
from fieldguide.inference.checks.ranges import Number, Share, Size, Weight, checked
from fieldguide.inference.program import Batch
from fieldguide.inference.step import by_group

ROWS = 0.05
"""Standard deviation of rows at the start."""


@entry(
    "grape",
    title="GRAPE: rows for genes, learnt by transferring the style of one perturbation to cells of another",
    schema=Schema(image=Images("obsm/image", standardise=True), label=Supervision("label")),
    objective=ELBO(),
    supports=("elbo",),
    defaults={"learning_rate": 1e-3, "max_epochs": 100, "validation": 0.0},
    cite="""
@misc{bigverdi2024gene,
  title = {Gene-Level Representation Learning via Interventional Style Transfer in Optical Pooled Screening},
  author = {Bigverdi, Mahtab and Hoeckendorf, Burkhard and Yao, Heming and Hanslovsky, Phil and Lopez, Romain and
    Richmond, David},
  year = {2024},
  eprint = {2406.07763},
  archivePrefix = {arXiv}
}""",
)
class Grape(Program):
    r"""A game on images x [C, S, S] of cells with a perturbed gene y, between a generator G and a critic D.

    A gene g is drawn for each cell, whatever its own; its row m_g becomes a style, and the cell is drawn in it::

        w ~ Normal(0, I)      s = F(m_g, w)      x' = G(x, s)
        - softplus(-D_g(x'))                       the critic takes x' for a cell of g
        - style * |E(x') - s|                      its style can be read from it
        - cycle * |G(x', E(x)) - x|                and with its own style the cell is itself again
        + diversity * |x' - G(x, F(m_g, w'))|      (off by default: it grows without bound)

    Absolute values are means over numbers. Against it, the critic (parameter group ``critic``) learns to tell them from
    cells: ``softplus(-D_y(x)) + softplus(D_g(x')) + penalty / 2 * |grad_x D_y(x)|^2``. Both take a step in each
    minibatch, each along its own loss alone. There is no bound, and nothing is inferred but w, from its prior: of the
    objectives the ELBO alone has a meaning, as the loss of the generator. What was published of sizes and weights is
    not known; these are those of StarGAN v2, smaller. `grape_vi` is the same idea with a likelihood.

    Sites: ``w`` [W], and ``w_other`` for the diversity; ``transferred`` [C, S, S], the cell in the style of
    ``batch["target"]`` (by default the next gene); ``own_style`` [E], E(x), deterministic in the guide.

    Parameters
    ----------
    n_channels, image_size, n_label : int
        Filled in by ``fit``.
    n_row, n_noise, n_style : int
        Numbers in a row, of w and of a style; published 500 for rows.
    width, halvings : int
        Channels of the first stage of all networks, and how often the generator halves images.
    mapping_width, mapping_layers : int
        Of F.
    style, cycle, diversity, penalty : float
        Weights.
    averaging : float
        Share that stays in each step, of the averages of the generator's side that are used outside training.
    partners : int
        Least number of cells of each gene in a minibatch; 0 to shuffle cells as they are.
    augment : bool
        Turn training images by quarters and flip them.
    """

    latent = "own_style"
    steps: Tensor

    @checked
    def __init__(
        self,
        n_channels: Size = 1,
        image_size: Size = 32,
        n_label: Size = 2,
        n_row: Size = 64,
        n_noise: Size = 8,
        n_style: Size = 16,
        width: Size = 12,
        halvings: Number = 1,
        mapping_width: Size = 128,
        mapping_layers: Size = 3,
        style: Weight = 1.0,
        cycle: Weight = 1.0,
        diversity: Weight = 0.0,
        penalty: Weight = 1.0,
        averaging: Share = 0.999,
        partners: Number = 0,
        augment: bool = True,
    ) -> None:
        super().__init__()
        if n_label < 2:
            raise ValueError("there is one gene: no style to transfer to; give the field 'label' at least two")
        if partners == 1:
            raise ValueError("partners=1: at least 2 cells of each gene, or 0 to shuffle all")
        if image_size % 2**halvings:
            raise ValueError(f"halvings={halvings}: images of {image_size} pixels are not a multiple of {2**halvings}")
        self.n_label, self.n_noise, self.n_style = n_label, n_noise, n_style
        self.weights = {"style": style, "cycle": cycle, "diversity": diversity, "penalty": penalty}
        self.averaging, self.augment = averaging, augment
        self.balanced = Balanced("label", partners) if partners else None
        self.live = nn.ModuleDict(
            {
                "generator": StyleGenerator(n_channels, n_style, width, halvings),
                "mapping": Mapping(n_row, n_noise, n_style, mapping_width, mapping_layers),
                "style": StyleEncoder(n_channels, n_style, width, image_size),
                "rows": nn.Embedding(n_label, n_row),
            }
        )
        self.critic = StyleEncoder(n_channels, n_label, width, image_size)
        self.live.apply(kaiming)
        self.critic.apply(kaiming)
        nn.init.normal_(self.live["rows"].weight, std=ROWS)  # pyright: ignore[reportArgumentType]
        self.averaged = copy.deepcopy(self.live).requires_grad_(False)
        self.register_buffer("steps", torch.tensor(0))

    @property
    def players(self) -> nn.ModuleDict:
        """The generator's side: as it is in training, averages outside."""
        return self.live if self.training else self.averaged

    def model(self, batch: Batch) -> None:
        p: Any = self.players
        with self.cells(batch):
            w, *other_w = self.noise(batch)
            many = w.shape[:-1]  # particles, if any, and cells

            def flat(values: Tensor, dims: int) -> Tensor:
                event = values.shape[values.dim() - dims :]
                return values.expand(*many, *event).reshape(-1, *event)

            x, target = flat(batch["image"], 3), flat(self.target(batch), 0)
            style = p.mapping(p.rows(target), flat(w, 1))
            made = p.generator(x, style)
            pyro.deterministic("transferred", made.view(*many, *x.shape[1:]), event_dim=3)
            terms = {"adversarial": -F.softplus(-chosen(self.critic(made), target))}
            terms["style"] = -self.weights["style"] * (p.style(made) - style).abs().mean(-1)
            again = p.generator(made, p.style(x))
            terms["cycle"] = -self.weights["cycle"] * (again - x).abs().mean((1, 2, 3))
            if other_w:
                other = p.generator(x, p.mapping(p.rows(target), flat(other_w[0], 1))).detach()
                terms["diversity"] = self.weights["diversity"] * (made - other).abs().mean((1, 2, 3))
            for name, value in terms.items():
                pyro.factor(name, value.view(many))

    def guide(self, batch: Batch) -> None:
        p: Any = self.players
        with self.cells(batch):
            pyro.deterministic("own_style", p.style(batch["image"]), event_dim=1)
            self.noise(batch)

    def noise(self, batch: Batch) -> list[Tensor]:
        """Draw w, and another where styles of one gene are to differ."""
        names = ("w", "w_other") if self.weights["diversity"] else ("w",)
        plain = dist.Normal(batch["image"].new_zeros(self.n_noise), 1.0).to_event(1)
        return [pyro.sample(name, plain) for name in names]

    def target(self, batch: Batch) -> Tensor:
        """The gene [B] whose style each cell is given."""
        return batch["target"] if "target" in batch else (batch["label"].clamp(min=0) + 1) % self.n_label

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The generator's side ``theta``, nothing in ``phi``, and the ``critic``."""
        return {"theta": list(self.live.parameters()), "phi": [], "critic": list(self.critic.parameters())}

    # ---- training ------------------------------------------------------------------------------------------
    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Draw the genes whose style is given; a loss for each player."""
        learning = self.training and torch.is_grad_enabled()
        if learning and self.augment:
            step.batch = step.batch | {"image": turned_and_flipped(step.batch["image"])}
        if "target" not in step.batch:
            drawn = torch.randint(0, self.n_label, step.batch["label"].shape, device=step.batch["label"].device)
            step.batch = step.batch | {"target": drawn}
        losses = {"theta": by_group(objective(step))["theta"]}
        made = step.value("transferred")[0].detach()
        losses["critic"] = self.critic_loss(step.batch, made, learning)
        step.log("critic", losses["critic"])
        if learning:
            self.average()
        return losses

    def critic_loss(self, batch: Batch, made: Tensor, learning: bool = True) -> Tensor:
        """What the critic loses on cells as they are and on transferred ones [B, C, S, S]."""
        image = batch["image"].detach().requires_grad_(learning and self.weights["penalty"] > 0)
        own = chosen(self.critic(image), batch["label"].clamp(min=0))
        loss = F.softplus(-own) + F.softplus(chosen(self.critic(made), batch["target"]))
        if image.requires_grad:
            if torch.compiler.is_compiling():
                raise NotImplementedError(
                    "a captured step takes no slope of the critic: leave compile=True out, or penalty=0"
                )
            (slope,) = torch.autograd.grad(own.sum(), image, create_graph=True)
            loss = loss + 0.5 * self.weights["penalty"] * slope.square().sum((1, 2, 3))
        return loss.mean()

    @torch.no_grad()
    def average(self) -> None:
        """Move the averages towards the generator's side; quickly at first."""
        self.steps += 1
        share = ((1 + self.steps) / (10 + self.steps)).clamp(max=self.averaging)
        for kept, now in zip(self.averaged.parameters(), self.live.parameters(), strict=True):
            kept.lerp_(now, 1 - share.to(kept))


def chosen(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the logit [B] of one class each, of [B, K]."""
    return logits.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
