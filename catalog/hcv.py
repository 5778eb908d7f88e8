"""HCV: expression denoised of technical quality, by latents held independent of it (Lopez et al. 2018)."""

from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import Encoder, ScalarEncoder
from fieldguide.catalog.parts.likelihoods import LIKELIHOODS
from fieldguide.catalog.parts.networks import Layers, join
from fieldguide.inference import ELBO, Continuous, Counts, Program, Schema, hsic
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Share, Size, checked
from fieldguide.inference.program import Batch

TECHNICAL = 25
"""Width of the network from u to zero inflation and metrics (published code)."""
LEAST_SPREAD = 0.05
"""Least standard deviation of a standardised metric given u, or one metric would fix u."""


@entry(
    "hcv",
    title="HCV: counts and quality metrics of cells, with biology (z) held independent of technical quality (u)",
    schema=Schema(counts=Counts("X"), quality=Continuous("quality")),
    objective=ELBO(kl="analytic"),
    constraints=(hsic("z", "u"),),
    cite="""
@inproceedings{lopez2018information,
  title = {Information constraints on auto-encoding variational Bayes},
  author = {Lopez, Romain and Regier, Jeffrey and Jordan, Michael I. and Yosef, Nir},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {31},
  year = {2018},
  note = {arXiv:1805.08672}
}""",
)
class HCV(Program):
    r"""HCV, the HSIC-constrained VAE of denoised expression.

    For each cell with counts x [G] and quality metrics s [J], standardised::

        z ~ Normal(0, I)    [D]                    u ~ Normal(0, I)    [E]
        log l ~ Normal(m, v)                       library="latent"; otherwise l is the total count
        rho = softmax(decoder(z, u))
        x_g ~ NegativeBinomial(mean l * rho_g, inverse dispersion theta_g), or zero with probability sigmoid(gate(u)_g)
        s_j ~ Normal(mean(u)_j, sd(u)_j)

    So u alone drives zero inflation and metrics, and both drive expression. The guide is q(z | x) q(l | x) q(u | x, s).
    By its prior z is independent of u; a mean-field guide is not, on average over cells, so the entry adds the
    constraint ``hsic("z", "u")``, of which `fit` takes others: ``constraints=[hsic("z", "u", weight=300)]``, or ``()``
    for none. Decisions draw u anew from its prior (``nuisance``), so that they compare expression at equal quality.

    Metrics are read from one column or more, ``fields={"quality": ["percent_mito", "n_genes"]}``. Take logits of
    fractions and logs of sizes before, so that a Gaussian suits them. The published code models metrics by Bernoulli
    cross entropy; the paper, and this, by Gaussians.

    Sites: ``z`` [D], ``u`` [E], ``log_library`` (when latent), ``counts`` [G], ``quality`` [J]; outside training
    ``rho`` [G] (proportions) and ``kept`` [G], one minus the zero inflation.

    Parameters
    ----------
    n_genes, n_quality : int
        G and J; filled in by ``fit``.
    n_latent, n_nuisance : int
        D and E (published: 5 and 3, where scVI has 8).
    n_hidden, n_layers : int
        Width and hidden layers of encoders and decoder.
    dropout : float
        Of the encoders.
    likelihood : {"zinb", "nb"}
        "nb" leaves the zero inflation out.
    library : {"observed", "latent"}
        Whether the library size is the total count, or a latent with the empirical mean and variance as a prior, as
        published. A latent one needs longer training: until then it takes up part of the differences between types.
    guide : {"mean_field", "student_t", "full_covariance", "flow"}
        Family of q(z | x) and q(u | x, s), see `fieldguide.catalog.parts.guides`.
    """

    latent = "z"
    warmup = ("z", "u")
    nuisance = ("u",)
    library_prior: Tensor

    @checked
    def __init__(
        self,
        n_genes: Size,
        n_quality: Size = 1,
        n_latent: Size = 5,
        n_nuisance: Size = 3,
        n_hidden: Size = 128,
        n_layers: Size = 1,
        dropout: Share = 0.1,
        likelihood: str = "zinb",
        library: str = "observed",
        guide: str = "mean_field",
    ) -> None:
        super().__init__()
        one_of("likelihood", likelihood, ("zinb", "nb"))
        one_of("library", library, ("observed", "latent"))
        self.likelihood, self.library = likelihood, library
        self.loud = (n_genes / n_quality) ** 0.5  # a few metrics weigh as much as many genes when training starts
        size = {"n_layers": n_layers, "dropout": dropout}
        self.encoder_z = Encoder(n_genes, n_latent, n_hidden, guide, **size)
        self.encoder_u = Encoder(n_genes + n_quality, n_nuisance, n_hidden, guide, **size)
        if library == "latent":
            self.encoder_library = ScalarEncoder(n_genes, n_hidden, dropout=dropout)
        self.decoder = Layers(n_latent, n_hidden, n_layers, n_nuisance)
        self.head_rho = nn.Linear(n_hidden + n_nuisance, n_genes)
        self.technical = Layers(n_nuisance, TECHNICAL)
        if likelihood == "zinb":
            self.head_gate = nn.Linear(TECHNICAL, n_genes)
        self.head_quality = nn.Linear(TECHNICAL, 2 * n_quality)
        self.log_dispersion = nn.Parameter(torch.randn(n_genes))
        self.register_buffer("library_prior", torch.tensor([0.0, 1.0]))
        self.register_buffer("origin_z", torch.zeros(n_latent))
        self.register_buffer("origin_u", torch.zeros(n_nuisance))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the prior of a latent library: mean and standard deviation of the log totals of the training cells."""
        totals = torch.cat([b["counts"].sum(-1).log() for b in batches])
        self.library_prior.copy_(torch.stack((totals.mean(), totals.std().clamp(min=0.01))))

    def model(self, batch: Batch) -> None:
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.origin_z, 1.0).to_event(1))
            u = pyro.sample("u", dist.Normal(self.origin_u, 1.0).to_event(1))
            logits = self.head_rho(join(self.decoder(z, u), u))
            technical = self.technical(u)
            gate = self.head_gate(technical) if self.likelihood == "zinb" else None
            if not self.training:
                pyro.deterministic("rho", torch.softmax(logits, -1), event_dim=1)
                open_share = torch.ones_like(logits) if gate is None else torch.sigmoid(-gate)
                pyro.deterministic("kept", open_share, event_dim=1)
            pyro.sample("quality", self.metrics(technical), obs=batch["quality"])
            pyro.sample("counts", self.observation(logits, self.log_library(batch), gate), obs=batch["counts"])

    def guide(self, batch: Batch) -> None:
        features = batch["counts"].log1p()
        with self.cells(batch):
            pyro.sample("z", self.encoder_z(features))
            pyro.sample("u", self.encoder_u(join(features, self.loud * batch["quality"])))
            if self.library == "latent":
                pyro.sample("log_library", self.encoder_library(features))

    def log_library(self, batch: Batch) -> Tensor:
        """Natural log of the library size, [..., B, 1]."""
        if self.library == "latent":
            return pyro.sample("log_library", dist.Normal(*self.library_prior)).unsqueeze(-1)
        return batch["counts"].sum(-1).log().unsqueeze(-1)

    def metrics(self, technical: Tensor) -> Distribution:
        """Distribution of the standardised quality metrics, [..., B, J]."""
        loc, raw = self.head_quality(technical).chunk(2, -1)
        return dist.Normal(loc, F.softplus(raw) + LEAST_SPREAD).to_event(1)

    def observation(self, logits: Tensor, log_library: Tensor, gate: Tensor | None) -> Distribution:
        """Distribution of the counts, of mean exp(log_library) * softmax(logits) before inflation, [..., B, G]."""
        gates = [] if gate is None else [gate]
        return LIKELIHOODS[self.likelihood].from_logits(logits, log_library, self.log_dispersion, *gates)
