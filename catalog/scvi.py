"""scVI: deep generative modelling of single-cell counts (Lopez et al., Nature Methods 2018)."""

from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import Encoder, ScalarEncoder
from fieldguide.catalog.parts.likelihoods import LIKELIHOODS
from fieldguide.catalog.parts.networks import Layers, one_hot
from fieldguide.inference import ELBO, Categories, Category, Continuous, Counts, Program, Schema, SizeFactor
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Number, Share, Size, checked
from fieldguide.inference.program import Batch

DISPERSIONS = ("gene", "gene-batch", "gene-label", "gene-cell")


@entry(
    "scvi",
    title="Single-cell variational inference: a negative binomial VAE of counts, corrected for batch and depth",
    schema=Schema(
        counts=Counts("X"),
        batch=Category("batch", optional=True),
        labels=Category("", optional=True),
        categorical=Categories("", optional=True),
        continuous=Continuous("", optional=True),
        size_factor=SizeFactor("", optional=True),
    ),
    objective=ELBO(kl="analytic"),
    cite="""
@article{lopez2018deep,
  title = {Deep generative modeling for single-cell transcriptomics},
  author = {Lopez, Romain and Regier, Jeffrey and Cole, Michael B. and Jordan, Michael I. and Yosef, Nir},
  journal = {Nature Methods},
  volume = {15},
  pages = {1053--1058},
  year = {2018},
  doi = {10.1038/s41592-018-0229-2}
}""",
)
class SCVI(Program):
    r"""scVI.

    For each cell with counts x [G], batch s, and latent z [D]::

        z ~ Normal(0, I)
        log l ~ Normal(m_s, v_s)          library="latent"; otherwise l is the total count (or a size factor)
        rho = softmax(decoder(z, s))
        x_g ~ NegativeBinomial(mean l * rho_g, inverse dispersion theta_g)    or zero-inflated, or Poisson

    The guide is Normal(encoder(log(1 + x))) for z (or of another family), and likewise for log l.

    Sites: ``z`` [D], ``log_library`` (when latent), ``rho`` [G] (proportions; outside training), ``counts`` [G].

    Parameters
    ----------
    n_genes, n_batch, n_labels, n_categorical, n_continuous
        What the data implies; filled in by ``fit``.
    n_latent, n_hidden, n_layers : int
        Latent dimension and size of both networks (published: 10, 128, 1).
    dropout : float
        Dropout of the encoder.
    likelihood : {"nb", "zinb", "poisson"}
        The negative binomial by default: for UMI counts most zeros need no inflation (the paper's own conclusion).
    dispersion : {"gene", "gene-batch", "gene-label", "gene-cell"}
        What the inverse dispersion theta depends on.
    library : {"observed", "latent"}
        Whether the library size is the total count of the cell, or a latent with the empirical mean and variance
        of its batch as a prior (the paper's).
    encode_covariates : bool
        Whether the encoder sees batch and covariates (the paper's notation; its code does not).
    guide : {"mean_field", "student_t", "full_covariance", "flow"}
        Family of the guide of z, see `fieldguide.catalog.parts.guides`; published: mean field.
    """

    latent = "z"
    warmup = ("z",)

    @checked
    def __init__(
        self,
        n_genes: Size,
        n_batch: Size = 1,
        n_labels: Size = 1,
        n_categorical: tuple[int, ...] = (),
        n_continuous: Number = 0,
        n_latent: Size = 10,
        n_hidden: Size = 128,
        n_layers: Size = 1,
        dropout: Share = 0.1,
        likelihood: str = "nb",
        dispersion: str = "gene",
        library: str = "observed",
        encode_covariates: bool = False,
        guide: str = "mean_field",
    ) -> None:
        super().__init__()
        one_of("likelihood", likelihood, LIKELIHOODS)
        one_of("dispersion", dispersion, DISPERSIONS)
        one_of("library", library, ("observed", "latent"))
        for field, known in (("batch", n_batch), ("label", n_labels)):
            if dispersion == f"gene-{field}" and known < 2:
                raise ValueError(f"dispersion='gene-{field}' needs a {field} field with two categories or more")
        self.n_batch, self.n_categorical = n_batch, tuple(n_categorical)
        self.likelihood, self.dispersion, self.library = likelihood, dispersion, library
        self.encode_covariates = encode_covariates
        n_covariates = (n_batch if n_batch > 1 else 0) + sum(self.n_categorical) + n_continuous
        reads = {"n_covariates": n_covariates if encode_covariates else 0, "dropout": dropout}
        self.encoder_z = Encoder(n_genes, n_latent, n_hidden, guide, n_layers=n_layers, **reads)
        if library == "latent":
            self.encoder_library = ScalarEncoder(n_genes, n_hidden, **reads)
        self.register_buffer("library_prior", torch.tensor([[0.0, 1.0]]).repeat(n_batch, 1))
        self.decoder = Layers(n_latent, n_hidden, n_layers, n_covariates)
        self.head_rho = nn.Linear(n_hidden, n_genes)
        if likelihood == "zinb":
            self.head_gate = nn.Linear(n_hidden, n_genes)
        if dispersion == "gene-cell":
            self.head_dispersion = nn.Linear(n_hidden, n_genes)
        elif likelihood != "poisson":
            rows = {"gene": (), "gene-batch": (n_batch,), "gene-label": (n_labels,)}[dispersion]
            self.log_dispersion = nn.Parameter(torch.randn(*rows, n_genes))
        self.register_buffer("prior_loc", torch.zeros(n_latent))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the prior of a latent library: mean and variance of the log totals of each batch's training cells.

        A batch without training cells has those of all of them.
        """
        if self.library == "observed":
            return
        pairs = [(self.codes(b), b["counts"].sum(-1).log()) for b in batches]
        codes, totals = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        for code in range(self.n_batch):
            inside = totals[codes == code]
            inside, spread = inside if len(inside) else totals, inside if len(inside) > 1 else totals
            self.library_prior[code] = torch.stack((inside.mean(), spread.var().sqrt().clamp(min=0.01)))

    def model(self, batch: Batch) -> None:
        covariates = self.covariates(batch)
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            hidden = self.decoder(z, covariates)
            logits = self.head_rho(hidden)
            if not self.training:
                pyro.deterministic("rho", torch.softmax(logits, -1), event_dim=1)
            counts = self.observation(logits, self.log_library(batch), hidden, batch)
            pyro.sample("counts", counts, obs=batch["counts"])

    def guide(self, batch: Batch) -> None:
        features = batch["counts"].log1p()
        covariates = self.covariates(batch) if self.encode_covariates else None
        with self.cells(batch):
            pyro.sample("z", self.encoder_z(features, covariates))
            if self.library == "latent":
                pyro.sample("log_library", self.encoder_library(features, covariates))

    def log_library(self, batch: Batch) -> Tensor:
        """Natural log of the library size, [..., B, 1]."""
        if self.library == "latent":
            loc, scale = self.library_prior[self.codes(batch)].unbind(-1)
            return pyro.sample("log_library", dist.Normal(loc, scale)).unsqueeze(-1)
        library = batch["size_factor"] if "size_factor" in batch else batch["counts"].sum(-1)
        return library.log().unsqueeze(-1)

    def observation(self, logits: Tensor, log_library: Tensor, hidden: Tensor, batch: Batch) -> dist.TorchDistribution:
        """Distribution of the counts, of mean exp(log_library) * softmax(logits), [..., B, G]."""
        parameters = [logits, log_library]
        if self.likelihood != "poisson":
            parameters.append(self.log_theta(hidden, batch))
        if self.likelihood == "zinb":
            parameters.append(self.head_gate(hidden))
        return LIKELIHOODS[self.likelihood].from_logits(*parameters)

    def log_theta(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Log inverse dispersion of each gene, [G] or [..., B, G]."""
        if self.dispersion == "gene-cell":
            return self.head_dispersion(hidden)
        if self.dispersion == "gene":
            return self.log_dispersion
        return self.log_dispersion[self.codes(batch) if self.dispersion == "gene-batch" else batch["labels"]]

    def codes(self, batch: Batch) -> Tensor:
        """Batch of each cell [B]; zero when there is one batch."""
        return batch["batch"] if "batch" in batch else torch.zeros_like(batch["index"])

    def covariates(self, batch: Batch) -> Tensor | None:
        """Batch and further covariates of each cell [B, C], or None when there are none."""
        parts = [one_hot(batch["batch"], self.n_batch)] if self.n_batch > 1 else []
        parts += [one_hot(batch["categorical"][:, i], n) for i, n in enumerate(self.n_categorical)]
        parts += [batch["continuous"]] if "continuous" in batch else []
        return torch.cat(parts, -1) if parts else None
