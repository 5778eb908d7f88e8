"""Genes by the style of their images: content of a cell, style of its perturbation (after Bigverdi et al. 2024)."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import MeanField
from fieldguide.catalog.parts.images.contrastive import dependence
from fieldguide.catalog.parts.images.networks import ImageDecoder, ResidualEncoder, turned_and_flipped
from fieldguide.catalog.parts.images.observation import ImageLaw
from fieldguide.inference import ELBO, Balanced, Images, Program, Schema, Supervision
from fieldguide.inference.checks.ranges import Number, Size, Weight, checked
from fieldguide.inference.program import Batch
from fieldguide.inference.step import add_term

SITES = ("c", "s")
TAU = 0.1


@entry(
    "grape_vi",
    title="Content and style of perturbed cells in images: one row of style for each gene, with its posterior",
    schema=Schema(
        image=Images("obsm/image"), label=Supervision("label"), environment=Supervision("environment", optional=True)
    ),
    objective=ELBO(kl="analytic"),
    supports=("elbo", "iwae", "renyi", "vrmax", "wake", "chi", "forward_kl"),
    defaults={"learning_rate": 1e-3, "max_epochs": 60},
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
class GrapeVI(Program):
    r"""Images x [C, S, S] of cells in which a gene g was perturbed, in an environment e, by content and style.

    ::

        m_g ~ Normal(0, I)                       a row for each gene
        s ~ Normal(m_g, 1)        c ~ Normal(0, I)
        x_ij ~ Normal(decoder(c, s, e)_ij, noise of the channel)

    With an explicit likelihood in the place of the game of the publication, so that every objective applies. Rows are
    those of largest posterior; given the styles of its n_g cells, the posterior of a row is normal, with the variance
    ``1 / (1 + n_g)`` (`row_deviation`). To give a cell the style of another gene is to keep its content and to draw s
    from that gene's prior. What is the gene's must not be said by the content: ``alpha`` weighs how much partners by c
    depend on the gene (`fieldguide.catalog.parts.images.contrastive.dependence`, "ce"), for the guide alone.

    Sites: ``c`` [D], ``s`` [E], ``image`` [C, S, S].

    Parameters
    ----------
    n_channels, image_size, n_label, n_environment : int
        Filled in by ``fit``. Without environments (wells) the decoder sees none.
    n_latent, n_style : int
        D and E.
    n_embedding : int
        Numbers that say which environment it is, for the decoder.
    widths, depth, stem :
        Of the encoder: `fieldguide.catalog.parts.images.networks.ResidualEncoder`.
    alpha : float
        In nats a cell; 0 leaves it out.
    likelihood : {"normal", "bernoulli"}
    partners : int
        Least number of cells of each gene in a minibatch; 0 to shuffle cells as they are.
    augment : bool
        Turn training images by quarters and flip them.
    """

    latent = "s"
    cells_of: Tensor

    @checked
    def __init__(
        self,
        n_channels: Size = 1,
        image_size: Size = 32,
        n_label: Size = 1,
        n_environment: Size = 1,
        n_latent: Size = 32,
        n_style: Size = 16,
        n_embedding: Size = 8,
        widths: Any = (16, 32, 64),
        depth: Size = 1,
        stem: str = "small",
        alpha: Weight = 1.0,
        likelihood: str = "normal",
        partners: Number = 8,
        augment: bool = True,
    ) -> None:
        super().__init__()
        if partners == 1:
            raise ValueError("partners=1: a cell needs another of its gene, at least 2; 0 shuffles all cells")
        self.n_label, self.alpha, self.augment = n_label, alpha, augment
        self.balanced = Balanced("label", partners) if partners else None
        self.encoder = ResidualEncoder(n_channels, tuple(widths), depth, stem)
        self.encoder_c = MeanField(self.encoder.width, n_latent)
        self.encoder_s = MeanField(self.encoder.width, n_style)
        self.wells = nn.Embedding(n_environment, n_embedding) if n_environment > 1 else None
        n_given = n_latent + n_style + (n_embedding if self.wells is not None else 0)
        self.decoder = ImageDecoder(n_given, n_channels, image_size)
        self.law = ImageLaw(n_channels, likelihood)
        self.rows = nn.Parameter(0.1 * torch.randn(n_label, n_style))
        self.register_buffer("cells_of", torch.zeros(n_label, dtype=torch.int64))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Count the training cells of each gene."""
        for batch in batches:
            self.cells_of += torch.bincount(batch["label"], minlength=self.n_label)

    def model(self, batch: Batch) -> None:
        image, known = batch["image"], (batch["label"] >= 0).unsqueeze(-1)
        with self.cells(batch):
            c = pyro.sample("c", dist.Normal(image.new_zeros(self.encoder_c.out_features // 2), 1.0).to_event(1))
            row = torch.where(known, self.rows[batch["label"].clamp(min=0)], 0.0)
            s = pyro.sample("s", dist.Normal(row, torch.where(known, 1.0, 2.0**0.5)).to_event(1))
            pyro.sample("image", self.law(self.decoded(c, s, batch)), obs=image)

    def guide(self, batch: Batch) -> None:
        with self.cells(batch):
            features = self.encoder(batch["image"])
            pyro.sample("c", self.encoder_c(features))
            pyro.sample("s", self.encoder_s(features))

    def decoded(self, c: Tensor, s: Tensor, batch: Batch) -> Tensor:
        """What the decoder says of content [..., B, D] and style [..., B, E] in the cells' environments."""
        given = [c, s]
        if self.wells is not None:
            place = batch["environment"]
            told = self.wells(place.clamp(min=0))
            average = self.wells.weight.mean(0)  # of an environment that training had not
            given.append(torch.where((place >= 0).unsqueeze(-1), told, average).expand(*c.shape[:-1], -1))
        return self.decoder(torch.cat(given, -1))

    def row_deviation(self) -> Tensor:
        """Posterior standard deviation of each coordinate of a row [n_label], given the styles of its cells."""
        return (1 / (1 + self.cells_of)).sqrt()

    # ---- training ------------------------------------------------------------------------------------------
    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Add the prior of the rows, and how much of the gene the content says."""
        learning = self.training and torch.is_grad_enabled()
        if learning and self.augment:
            step.batch = step.batch | {"image": turned_and_flipped(step.batch["image"])}
        losses = objective(step)
        total = max(int(step.total or len(step.batch["label"])), 1)
        losses = add_term(losses, self.rows.square().sum() / (2 * total), "theta")
        if learning and self.alpha:
            c = F.normalize(step.draw("c"), dim=-1)
            told = dependence(c, step.batch["label"], TAU, self.n_label, "ce").mean()
            step.log("content_of_gene", told)
            losses = add_term(losses, self.alpha * told, "phi")
        return losses
