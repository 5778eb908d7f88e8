"""gimVI: a joint model of unpaired sequencing and spatial counts, to impute genes (Lopez et al. 2019)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.count_math import LIMIT
from fieldguide.catalog.parts.likelihoods import LIKELIHOODS
from fieldguide.catalog.parts.mixed_counts import is_kind, mixed_counts, one_each
from fieldguide.catalog.parts.networks import NormLayers, bounded_exp, one_hot
from fieldguide.inference import ELBO, Category, Counts, Modality, Program, Schema
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Number, Share, Size, Weight, checked
from fieldguide.inference.constraints.measures import mmd, multiquadric_gram
from fieldguide.inference.data.matrices import real_array
from fieldguide.inference.program import Batch
from fieldguide.inference.step import Losses, add_term, by_group

UNMEASURED = -1e4
"""Logit of a gene that the modality of the cell does not measure: its mean is zero, and zero counts say nothing."""
LIBRARY = ("latent", "observed")
"""Libraries as published: of sequencing, and of all other modalities."""


@entry(
    "gimvi",
    title="gimVI: sequencing and spatial counts of different cells in one latent space, to impute unmeasured genes",
    schema=Schema(counts=Counts("X"), modality=Modality("modality"), batch=Category("batch", optional=True)),
    objective=ELBO(kl="analytic"),
    defaults={"max_epochs": 50, "learning_rate": 0.01},
    cite="""
@inproceedings{lopez2019joint,
  title = {A joint model of unpaired data from {scRNA-seq} and spatial transcriptomics for imputing missing gene
           expression measurements},
  author = {Lopez, Romain and Nazaret, Achille and Langevin, Maxime and Samaran, Jules and Regier, Jeffrey and
            Jordan, Michael I. and Yosef, Nir},
  booktitle = {ICML Workshop on Computational Biology},
  year = {2019},
  note = {arXiv:1905.02269}
}""",
)
class GIMVI(Program):
    r"""gimVI.

    For a cell of modality m, which measures the genes M_m, in batch s::

        z ~ Normal(0, I)
        log l ~ Normal(m_s, v_s)       library="latent" (sequencing); otherwise l is the total count over M_m
        rho = softmax over M_m of (decoder(z) + a_m)
        x_g ~ NegativeBinomial(mean l * rho_g, inverse dispersion theta_sg)    or zero-inflated, or Poisson; g in M_m

    Genes outside M_m have rho_g = exp(decoder(z)_g) / (the same denominator) and enter no likelihood; a_m, the log
    efficiency of each gene in a modality other than the first, is zero for them. The guide of z reads the genes that
    all modalities measure, by one network, normalised within the cell (a batch norm would show the critic, and hide
    from it, which modality a minibatch is of).

    Mixing acts on the guide alone and in training alone (`training_loss`): with ``mixing="critic"``, a third parameter
    group "critic" learns to tell the modality from z, and the guide is pushed towards the wrong answers.

    Sites: ``z`` [D], ``log_depth`` (where latent), ``counts`` [G]; outside training ``rho`` [G], ``log_library`` (of
    either kind) and ``log_theta`` [G], the log inverse dispersion (of genes that the modality lacks: the mean over the
    batches that have it), ``measured`` [G].

    Parameters
    ----------
    n_genes, n_modality, measured, n_batch
        What the data implies; filled in by ``fit``. ``measured`` [M, G] is 1 where a modality measures a gene.
    n_latent, n_hidden : int
        Latent dimension and width of the networks (published: 8, 64; latents that the genes do not ask for cost
        nothing).
    n_layers : int
        Hidden layers of the decoder; 0 is the published log-linear one.
    dropout : float
        Of the guide. Published: 0.2, under which z holds little but the depth of sparse cells.
    likelihood : str or sequence of str
        "nb", "zinb" or "poisson", for all modalities or for each (the last one again where there are more). Published:
        ("zinb", "nb"); with inverse dispersions by gene, nothing of these data is left for zero inflation.
    library : str or sequence of str
        "observed" or "latent", likewise. Published: ("latent", "observed").
    encoder : {"common", "by_modality"}
        What infers z. "common": one network, for all modalities, of the genes that all measure. So a cell of any
        modality is read in the same way, and in training the model learns to predict the other genes from these. Or
        "by_modality": a head of its own for each, of all its genes, as published.
    masking : float
        Share of the genes that are withheld from the guide, at random, in training (published: 0). It is what lets
        genes be withheld later (batch field ``withheld`` [B, G], 1 where a count is not to be used).
    features : {"standardised", "log1p"}
        What the guide sees: log counts per total, standardised within each modality; or log(1 + x), as published.
    mixing : {"critic", "mmd", "none"}
        How the latents of modalities are brought together: an adversary (published), the maximum mean discrepancy, or
        by the model alone.
    kappa : float
        Weight of the mixing term. Published: 5, but with an optimiser of its own, whose steps hardly depend on it.
    efficiency : float
        Prior standard deviation of a_m, natural log; 0 leaves a_m out, as published.
    balance : bool
        Whether modalities count equally in the loss whatever their numbers of cells (published), or each cell.
    """

    latent = "z"
    warmup = ("z", "log_depth")

    measured: Tensor
    library_prior: Tensor
    modality_share: Tensor
    row_modality: Tensor
    feature_loc: Tensor
    feature_scale: Tensor
    feature_share: Tensor
    read: Tensor
    median_total: Tensor
    n_cells: Tensor

    @checked
    def __init__(
        self,
        n_genes: Size,
        n_modality: Size = 1,
        measured: Sequence[Any] | None = None,
        n_batch: Size = 1,
        n_latent: Size = 20,
        n_hidden: Size = 128,
        n_layers: Number = 0,
        dropout: Share = 0.0,
        likelihood: str | Sequence[str] = "nb",
        library: str | Sequence[str] = LIBRARY,
        encoder: str = "common",
        masking: Share = 0.1,
        features: str = "standardised",
        mixing: str = "critic",
        kappa: Weight = 5.0,
        efficiency: Weight = 1.0,
        balance: bool = True,
    ) -> None:
        super().__init__()
        self.likelihood = one_each("likelihood", likelihood, n_modality, LIKELIHOODS, "modalities")
        library = library[:n_modality] if library == LIBRARY else library
        self.library = one_each("library", library, n_modality, ("observed", "latent"), "modalities")
        one_of("mixing", mixing, ("critic", "mmd", "none"))
        one_of("features", features, ("standardised", "log1p"))
        one_of("encoder", encoder, ("common", "by_modality"))
        self.by_batch = n_batch > 1
        self.n_modality, self.n_rows = n_modality, n_batch if self.by_batch else n_modality
        self.features, self.kappa, self.efficiency, self.balance = features, kappa, efficiency, balance
        self.mixing = mixing if n_modality > 1 and kappa > 0 else "none"
        everything = torch.ones(n_modality, n_genes)
        table = everything if measured is None else torch.from_numpy(real_array("measured", measured)).to(everything)
        self.register_buffer("measured", table)
        if self.measured.shape != (n_modality, n_genes):
            raise ValueError(f"measured is {tuple(self.measured.shape)}, not {n_modality} modalities x {n_genes} genes")
        read = self.measured if encoder == "by_modality" else self.measured.prod(0).expand(n_modality, -1)
        self.register_buffer("read", read.clone())
        if not self.read.any():
            raise ValueError("no gene is measured by all modalities: encoder='by_modality' reads what each measures")
        heads = n_modality if encoder == "by_modality" else 1
        self.encoder_heads = nn.ModuleList(nn.Linear(n_genes, n_hidden) for _ in range(heads))
        self.encoder_masking = nn.Dropout(masking)
        self.encoder_shared = NormLayers(n_hidden, n_hidden, 1, dropout, first=True)
        self.encoder_z = nn.Linear(n_hidden, 2 * n_latent)
        if "latent" in self.library:
            self.encoder_depth = nn.Sequential(NormLayers(n_genes, n_hidden, 1, dropout), nn.Linear(n_hidden, 2))
        self.decoder = NormLayers(n_latent, n_hidden, n_layers) if n_layers else nn.Identity()
        width = n_hidden if n_layers else n_latent
        self.head_rho = nn.Linear(width, n_genes)
        if "zinb" in self.likelihood:
            self.head_gate = nn.Linear(width, n_genes)
        if set(self.likelihood) != {"poisson"}:
            self.log_dispersion = nn.Parameter(torch.randn(self.n_rows, n_genes))
        if efficiency and n_modality > 1:
            self.log_efficiency = nn.Parameter(torch.zeros(n_modality - 1, n_genes))
        if self.mixing == "critic":
            self.critic = nn.Sequential(NormLayers(n_latent, 32, 2), nn.Linear(32, n_modality))
        self.register_buffer("origin", torch.zeros(n_latent))
        self.register_buffer("library_prior", torch.tensor([[0.0, 1.0]]).repeat(self.n_rows, 1))
        self.register_buffer("row_modality", torch.full((self.n_rows, n_modality), 1 / n_modality))
        self.register_buffer("modality_share", torch.full((n_modality,), 1 / n_modality))
        self.register_buffer("feature_loc", torch.zeros(n_modality, n_genes))
        self.register_buffer("feature_scale", torch.ones(n_modality, n_genes))
        self.register_buffer("feature_share", torch.full((n_modality, n_genes), 1 / n_genes))
        self.register_buffer("median_total", torch.ones(n_modality))
        self.register_buffer("n_cells", torch.tensor(1.0))

    # ---- what the data says before training ---------------------------------------------------------------
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Learn priors of latent libraries, shares of modalities, and the scale of the guide's features."""
        used = [(b["counts"] * self.mask(b), b["modality"], self.rows(b), b["index"]) for b in batches]
        counts, modality, rows, index = (torch.cat(parts) for parts in zip(*used, strict=True))
        totals = counts.sum(-1)
        empty = torch.nonzero(totals == 0)
        if len(empty):
            raise ValueError(
                f"cell in row {int(index[empty[0, 0]])} has no count on the genes that its modality measures"
            )
        self.n_cells.fill_(len(counts))
        for m in range(self.n_modality):
            inside = modality == m
            number = int(inside.sum())
            self.modality_share[m] = number / len(counts)
            if number < 2:
                raise ValueError(f"modality {m} has {number} training cells; at least 2 are needed")
            read = counts[inside] * self.read[m]
            sums = read.sum(-1)
            self.median_total[m] = sums.median().clamp(min=1)
            self.feature_share[m] = read.sum(0) / sums.sum().clamp(min=1)
            values = torch.log1p(read / sums[:, None].clamp(min=1) * self.median_total[m])
            self.feature_loc[m], self.feature_scale[m] = values.mean(0), values.std(0)
        self.feature_scale.clamp_(min=1e-2)
        logs, latent = totals.log(), self.has_latent_library({"modality": modality})
        others = logs if latent is None else logs[latent]  # what a batch without training cells is taken to be like
        for row in range(self.n_rows):
            inside = rows == row
            self.row_modality[row] = one_hot(modality[inside], self.n_modality).sum(0) / inside.sum().clamp(min=1)
            own = logs[inside] if inside.any() else others
            spread = (own if len(own) > 1 else logs).std()
            self.library_prior[row] = torch.stack((own.mean(), spread.clamp(min=0.01)))

    # ---- model --------------------------------------------------------------------------------------------
    def model(self, batch: Batch) -> None:
        mask, latent = self.mask(batch), self.has_latent_library(batch)
        counts = batch["counts"] * mask
        with self.cells(batch):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            log_library = counts.sum(-1).clamp(min=1).log()
            if latent is not None:
                loc, scale = self.library_prior[self.rows(batch)].unbind(-1)
                with pyro.poutine.mask(mask=latent):
                    drawn = pyro.sample("log_depth", dist.Normal(loc, scale))
                log_library = torch.where(latent, drawn, log_library)
            hidden = self.decoder(z)
            logits = self.logits(hidden, batch)
            own = torch.where(mask > 0, logits, UNMEASURED)
            if not self.training:
                rho = torch.exp(logits - torch.logsumexp(own, -1, keepdim=True))
                pyro.deterministic("rho", rho, event_dim=1)
                pyro.deterministic("log_library", log_library, event_dim=0)
                pyro.deterministic("log_theta", self.log_theta(batch, mask), event_dim=1)
                pyro.deterministic("measured", mask, event_dim=1)
            pyro.sample("counts", self.observation(own, log_library.unsqueeze(-1), hidden, batch), obs=counts)

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Unnormalised log expression of all genes, [..., B, G]."""
        logits = self.head_rho(hidden)
        if hasattr(self, "log_efficiency"):
            logits = logits + F.pad(self.log_efficiency, (0, 0, 1, 0))[batch["modality"]] * self.mask(batch)
        return logits

    def observation(self, logits: Tensor, log_library: Tensor, hidden: Tensor, batch: Batch) -> Distribution:
        """Distribution of the counts, of mean exp(log_library) * softmax(logits), [..., B, G]."""
        dispersion = self.log_dispersion[self.rows(batch)] if hasattr(self, "log_dispersion") else None
        gate = self.head_gate(hidden) if hasattr(self, "head_gate") else None
        return mixed_counts(self.likelihood, batch["modality"], logits, log_library, dispersion, gate)

    def log_theta(self, batch: Batch, mask: Tensor) -> Tensor:
        """Log inverse dispersion of every gene [B, G]; genes without data in the modality have that of the others."""
        if set(self.likelihood) == {"poisson"}:
            return torch.full_like(mask, LIMIT)
        own = self.log_dispersion[self.rows(batch)]
        own = torch.where(is_kind("poisson", self.likelihood, batch["modality"]), LIMIT, own)
        share = self.row_modality @ self.measured
        theirs = (share * self.log_dispersion).sum(0) / share.sum(0).clamp(min=1e-6)
        return torch.where(mask > 0, own, theirs)

    # ---- guide --------------------------------------------------------------------------------------------
    def guide(self, batch: Batch) -> None:
        latent, features = self.has_latent_library(batch), self.seen(batch)
        with self.cells(batch):
            pyro.sample("z", self.encode(features, batch))
            if latent is not None:
                loc, log_scale = self.encoder_depth(features).unbind(-1)
                anchor = (batch["counts"] * self.mask(batch)).sum(-1).clamp(min=1).log()
                with pyro.poutine.mask(mask=latent):
                    pyro.sample("log_depth", dist.Normal(anchor + loc, bounded_exp(log_scale - 2, -8, 3)))

    def encode(self, features: Tensor, batch: Batch) -> Distribution:
        """Guide of z: head of the modality, shared block, Gaussian."""
        if len(self.encoder_heads) == 1:
            hidden = self.encoder_heads[0](features)
        else:
            heads = torch.stack([head(features) for head in self.encoder_heads], -2)
            hidden = (one_hot(batch["modality"], self.n_modality).unsqueeze(-1) * heads).sum(-2)
        loc, log_scale = self.encoder_z(self.encoder_shared(hidden)).chunk(2, -1)
        return dist.Normal(loc, bounded_exp(log_scale, -8, 8, 1e-3)).to_event(1)

    def seen(self, batch: Batch) -> Tensor:
        """What the guide sees of the counts, [B, G]; zero for genes that it does not read, or not this time."""
        modality = batch["modality"]
        mask = self.mask(batch) * self.read[modality]
        if self.training:
            mask = mask * (self.encoder_masking(torch.ones_like(mask)) > 0)
        counts = batch["counts"] * mask
        if self.features == "log1p":
            return counts.log1p()
        typical = self.median_total[modality] * (self.feature_share[modality] * mask).sum(-1)
        values = torch.log1p(counts * (typical / counts.sum(-1).clamp(min=1)).unsqueeze(-1))
        return ((values - self.feature_loc[modality]) / self.feature_scale[modality]).clamp(-10, 10) * mask

    # ---- training -----------------------------------------------------------------------------------------
    def training_loss(self, step: Any, objective: Callable) -> Losses:
        """Return the objective with modalities balanced, the prior of efficiencies, and the mixing terms by group."""
        batch, modality = step.batch, step.batch["modality"]
        if self.balance:
            step.cell_weights = (1 / (self.n_modality * self.modality_share.clamp(min=1e-6)))[modality]
        losses = objective(step)
        if not self.training:
            return losses
        if hasattr(self, "log_efficiency"):
            prior = 0.5 * ((self.log_efficiency / self.efficiency) ** 2).sum() / self.n_cells
            prior = prior - prior.detach()  # the value stays that of the objective
            losses = add_term(losses, prior, "theta")
        if self.mixing == "none":
            return losses
        z = self.encode(self.seen(batch), batch).rsample()
        if self.mixing == "mmd":
            distance = mmd(multiquadric_gram(z), modality, self.n_modality).to(z.dtype)
            return add_term(by_group(losses), self.kappa * distance, "phi")
        caught, fooled = self.confusion(z, modality)
        step.log("critic", caught)
        losses = add_term(by_group(losses), self.kappa * fooled, "phi")
        return by_group(losses) | {"critic": self.confusion(z.detach(), modality)[0]}

    def confusion(self, z: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
        """Mean -log critic(own modality), and -log of the others, of equal weight each; modalities count equally."""
        scores = torch.log_softmax(self.critic(z), -1)
        own = one_hot(modality, self.n_modality)
        weight = 1 / (self.n_modality * self.modality_share.clamp(min=1e-6))[modality]
        caught = -(weight * (own * scores).sum(-1)).mean()
        fooled = -(weight * ((1 - own) * scores).sum(-1)).mean() / (self.n_modality - 1)
        return caught, fooled

    # ---- small ones ---------------------------------------------------------------------------------------
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Model ``theta``, guide ``phi``, and ``critic`` where there is one."""
        groups = super().groups()
        if self.mixing == "critic":
            critic = {id(p) for p in self.critic.parameters()}
            groups["theta"] = [p for p in groups["theta"] if id(p) not in critic]
            groups["critic"] = list(self.critic.parameters())
        return groups

    def mask(self, batch: Batch) -> Tensor:
        """1 where a cell's counts of a gene are to be used: its modality measures it, nobody withholds it; [B, G]."""
        mask = self.measured[batch["modality"]]
        return mask * (1 - batch["withheld"]) if "withheld" in batch else mask

    def rows(self, batch: Batch) -> Tensor:
        """Row of the dispersions and library priors of each cell [B]: its batch, or its modality."""
        return batch["batch"] if self.by_batch else batch["modality"]

    def has_latent_library(self, batch: Batch) -> Tensor | None:
        """Whether the library of each cell is latent, bool [B]; None where none ever is."""
        if "latent" not in self.library:
            return None
        return torch.tensor([k == "latent" for k in self.library], device=self.origin.device)[batch["modality"]]
