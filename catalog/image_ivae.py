"""Image VAE with two blocks of latents, of the label and of the environment (iVAE, Khemakhem et al. 2020)."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import MeanField
from fieldguide.catalog.parts.images.networks import ImageDecoder, ResidualEncoder
from fieldguide.catalog.parts.images.observation import ImageLaw
from fieldguide.catalog.parts.networks import one_hot
from fieldguide.inference import ELBO, Images, Program, Schema, Supervision
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Number, Size, checked
from fieldguide.inference.program import Batch

LEAST = 1e-3
"""Smallest scale of latents."""


@entry(
    "image_ivae",
    title="Image VAE with latents of the label and of the environment (iVAE in two blocks), or plain",
    schema=Schema(image=Images("obsm/image"), label=Supervision("label"), environment=Supervision("environment")),
    objective=ELBO(kl="analytic"),
    defaults={"learning_rate": 1e-3, "max_epochs": 50},
    cite="""
@inproceedings{khemakhem2020variational,
  title = {Variational Autoencoders and Nonlinear {ICA}: A Unifying Framework},
  author = {Khemakhem, Ilyes and Kingma, Diederik P. and Monti, Ricardo Pio and Hyv{\\"a}rinen, Aapo},
  booktitle = {Proceedings of the 23rd International Conference on Artificial Intelligence and Statistics},
  series = {Proceedings of Machine Learning Research},
  volume = {108},
  pages = {2207--2217},
  year = {2020}
}""",
)
class ImageIVAE(Program):
    r"""Images x [C, S, S] from latents that the label y moves, and others that the environment e moves.

    ::

        z_c ~ Normal(m(y), s(y))       z_s ~ Normal(m'(e), s'(e))
        x_ij ~ Normal(decoder(z_c, z_s)_ij, noise of the channel)

    With ``prior="standard"`` both are standard normal: a VAE. The model that contrastive embeddings (`scbd`) are
    compared with; unlike them it has a likelihood, bounds for each cell, and every objective.

    Sites: ``z_c`` [D], ``z_s`` [E], ``image`` [C, S, S].

    Parameters
    ----------
    n_channels, image_size, n_label, n_environment : int
        Filled in by ``fit``.
    n_latent, n_spurious : int
        D and E; with E = 0 there is one block.
    prior : {"labels", "standard"}
    sees_environment : bool
        Whether the guide of z_s is q(z_s | x, e), rather than q(z_s | x).
    widths, depth, stem :
        Of the encoder: `fieldguide.catalog.parts.images.networks.ResidualEncoder`.
    likelihood : {"normal", "bernoulli"}
        Bernoulli for intensities between 0 and 1, as a quasi-likelihood.
    """

    latent = "z_c"

    @checked
    def __init__(
        self,
        n_channels: Size = 1,
        image_size: Size = 32,
        n_label: Size = 1,
        n_environment: Size = 1,
        n_latent: Size = 32,
        n_spurious: Number = 16,
        prior: str = "labels",
        sees_environment: bool = False,
        widths: Any = (16, 32, 64),
        depth: Size = 1,
        stem: str = "small",
        likelihood: str = "normal",
    ) -> None:
        super().__init__()
        one_of("prior", prior, ("labels", "standard"))
        self.sizes = {"z_c": n_latent} | ({"z_s": n_spurious} if n_spurious else {})
        self.codes = {"z_c": ("label", n_label), "z_s": ("environment", n_environment)}
        self.sees_environment, self.n_environment = sees_environment, n_environment
        self.encoder = ResidualEncoder(n_channels, tuple(widths), depth, stem)
        width = self.encoder.width
        seen = {"z_c": 0, "z_s": n_environment if sees_environment else 0}
        self.encoder_heads = nn.ModuleDict({s: MeanField(width + seen[s], n) for s, n in self.sizes.items()})
        self.decoder = ImageDecoder(sum(self.sizes.values()), n_channels, image_size)
        self.law = ImageLaw(n_channels, likelihood)
        self.prior: nn.ModuleDict | None = None
        if prior == "labels":
            self.prior = nn.ModuleDict({s: nn.Embedding(self.codes[s][1], 2 * n) for s, n in self.sizes.items()})
            for table in self.prior.values():
                nn.init.normal_(table.weight, std=0.1)

    def model(self, batch: Batch) -> None:
        with self.cells(batch):
            z = [pyro.sample(site, self.prior_of(site, batch)) for site in self.sizes]
            pyro.sample("image", self.law(self.decoder(torch.cat(z, -1))), obs=batch["image"])

    def guide(self, batch: Batch) -> None:
        features = self.encoder(batch["image"])
        with self.cells(batch):
            for site, head in self.encoder_heads.items():
                told = features
                if site == "z_s" and self.sees_environment:
                    told = torch.cat((features, known(batch["environment"], self.n_environment)), -1)
                pyro.sample(site, head(told))

    def prior_of(self, site: str, batch: Batch) -> Any:
        """Prior of a block for the cells of a minibatch; standard normal for a code that is not known."""
        field, _ = self.codes[site]
        size, cells = self.sizes[site], len(batch["image"])
        if self.prior is None:
            return dist.Normal(batch["image"].new_zeros(cells, size), 1.0).to_event(1)
        loc, scale = self.prior[site](batch[field].clamp(min=0)).chunk(2, -1)
        there = (batch[field] >= 0).unsqueeze(-1)
        scale = F.softplus(scale + 0.5413) + LEAST  # 1 at the start
        return dist.Normal(torch.where(there, loc, 0.0), torch.where(there, scale, 1.0)).to_event(1)


def known(codes: Tensor, number: int) -> Tensor:
    """Return one-hot codes [B, number], zeros for a negative one."""
    return one_hot(codes.clamp(min=0), number) * (codes >= 0).unsqueeze(-1)
