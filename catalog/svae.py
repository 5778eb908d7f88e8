"""sVAE+: perturbed cells whose latents each perturbation shifts sparsely (Lopez et al., CLeaR 2023)."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import Encoder
from fieldguide.catalog.parts.likelihoods import LIKELIHOODS
from fieldguide.catalog.parts.networks import Layers, one_hot
from fieldguide.catalog.parts.shifts import ExactShifts, SampledShifts
from fieldguide.catalog.parts.turning import turn
from fieldguide.decisions.perturbations.axes import AXES, PRICE, chosen_axes
from fieldguide.inference import ELBO, Category, Counts, Perturbations, Program, Schema, SizeFactor
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Share, Size, Weight, checked
from fieldguide.inference.program import Batch
from fieldguide.inference.step import add_term
from fieldguide.inference.training.processes import mean_over_processes

PRIORS = ("svae+", "svae", "ivae", "vae")
TURN = 0.3
"""Share of the training after which the axes of the latents are turned."""


@entry(
    "svae",
    title="sVAE+: latents of perturbed cells, each perturbation shifting few of them, with probabilities",
    schema=Schema(
        counts=Counts("X"),
        perturbation=Perturbations("perturbation"),
        batch=Category("batch", optional=True),
        size_factor=SizeFactor("", optional=True),
    ),
    objective=ELBO(kl="analytic"),
    supports=("elbo", "iwae", "renyi", "vrmax", "wake", "chi", "forward_kl"),
    cite="""
@inproceedings{lopez2023learning,
  title = {Learning causal representations of single cells via sparse mechanism shift modeling},
  author = {Lopez, Romain and Tagasovska, Nata{\\v s}a and Ra, Stephen and Cho, Kyunghyun and Pritchard, Jonathan K. and
    Regev, Aviv},
  booktitle = {Proceedings of the Second Conference on Causal Learning and Reasoning},
  series = {Proceedings of Machine Learning Research},
  volume = {213},
  pages = {662--691},
  year = {2023}
}""",
)
class SVAE(Program):
    r"""sVAE+, the sparse mechanism shift model.

    For each cell with counts x [G] and perturbations a, with a mask gamma [K, D] of zeros and ones over all cells::

        z_i ~ Normal(sum_a gamma_ai mu_ai, 1)
        rho = softmax(decoder(z, batch))
        x_g ~ NegativeBinomial(mean l * rho_g, inverse dispersion theta_g)     l: total count, or size factor

    The guide is q(z | x), which does not see the perturbation, with psi = q(gamma = 1). The expectation over masks is
    exact (`fieldguide.catalog.parts.shifts`), and so is the best mu and psi given the latents; they are set in closed
    form. Several perturbations of one cell add up. Controls have none: their latents are standard normal.

    Sparse shifts fix the axes of the latents, which a Gaussian prior leaves free, where each latent is moved by some
    perturbations and not by others. No gradient finds these axes from others that are far away: in the first three
    tenths of the training every perturbation may shift every latent; then the latents are turned, once, to the axes in
    which the shifts cost least (`rotate`), and the mask sets in.

    Sites: ``z`` [D], ``rho`` [G] (proportions; outside training), ``counts`` [G].

    Parameters
    ----------
    n_genes, n_perturbation, n_batch : int
        What the data implies; filled in by ``fit``.
    n_latent, n_hidden, n_layers : int
        D and the size of both networks (published: 15 in simulations and 50 on real data; 128; 2).
    dropout : float
        Of the encoder.
    prior : {"svae+", "svae", "ivae", "vae"}
        "vae": no shifts. "ivae": every perturbation shifts every latent. "svae+" and "svae": a mask, with a penalty
        (`sparsity`, or `alpha`), which "svae" takes on the mean of psi.
    mask : {"exact", "sampled"}
        "sampled": as published, shifts and logits of the mask are parameters, and a mask is drawn for each cell, with
        straight-through gradients. It needs `alpha`, and starts anywhere.
    sparsity : float
        Cost of a shift for each cell that has it, in nats: a latent counts as shifted from about
        ``sqrt(2 sparsity)`` of its standard deviations on, whatever the number of cells. Used unless `alpha` is given.
    alpha : float, optional
        As published, psi ~ Beta(1, alpha), tied to q(gamma = 1): the paper recommends K. How sparse that is depends on
        the cells of each perturbation: about ``1 + sparsity * cells`` is the same as `sparsity`. For "svae": the
        weight of the penalty.
    rotate : {"sparse", "ica", "none"}
        What the latents of "svae+" with the exact mask are turned to: the axes in which the shifts cost least, or those
        of independent component analysis, see `fieldguide.decisions.perturbations.axes`.
    beta : float
        Weight of the KL term of the latents in training, as in a beta-VAE; bounds that are asked for are without it.
    guide : {"mean_field", "student_t", "full_covariance", "flow"}
        Family of the guide, see `fieldguide.catalog.parts.guides`.
    """

    latent = "z"
    warmup = ("z",)
    shifts: ExactShifts | SampledShifts | None
    prior_loc: Tensor
    n_controls: Tensor
    turned: Tensor
    nested: Tensor

    @checked
    def __init__(
        self,
        n_genes: Size,
        n_perturbation: Size,
        n_batch: Size = 1,
        n_latent: Size = 15,
        n_hidden: Size = 128,
        n_layers: Size = 2,
        dropout: Share = 0.1,
        prior: str = "svae+",
        mask: str = "exact",
        sparsity: Weight = 0.2,
        alpha: Weight | None = None,
        rotate: str = "sparse",
        beta: Weight = 1.0,
        guide: str = "mean_field",
    ) -> None:
        super().__init__()
        one_of("prior", prior, PRIORS)
        one_of("mask", mask, ("exact", "sampled"))
        masked = prior in ("svae+", "svae")
        if masked and mask == "sampled" and alpha is None:
            raise ValueError("mask='sampled' needs alpha; the paper recommends the number of perturbations")
        if alpha is not None and prior == "svae+" and alpha < 1:
            raise ValueError(f"alpha must be at least 1 (which is no sparsity), not {alpha:g}")
        if prior == "svae" and mask == "exact":
            raise ValueError("prior='svae' is the published baseline: it needs mask='sampled'")
        one_of("rotate", rotate, AXES)
        self.prior, self.mask, self.alpha, self.n_batch = prior, mask, alpha, n_batch
        self.n_perturbation = n_perturbation
        self.sparsity, self.beta = sparsity, beta
        self.rotate = rotate if prior == "svae+" and mask == "exact" else "none"
        n_covariates = n_batch if n_batch > 1 else 0
        self.encoder_z = Encoder(n_genes, n_latent, n_hidden, guide, n_layers=n_layers, dropout=dropout)
        self.decoder = Layers(n_latent, n_hidden, n_layers, n_covariates)
        self.head_rho = nn.Linear(n_hidden, n_genes)
        self.log_dispersion = nn.Parameter(torch.randn(n_genes))
        self.shifts = None
        if prior != "vae":
            sizes = (n_perturbation, n_latent)
            exact = mask == "exact"
            self.shifts = ExactShifts(*sizes, sparsity, alpha, masked) if exact else SampledShifts(*sizes, masked)
        self.register_buffer("prior_loc", torch.zeros(n_latent))
        self.register_buffer("n_controls", torch.zeros(()))
        self.register_buffer("turned", torch.tensor(False))
        self.register_buffer("nested", torch.tensor(False))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Count the training cells of each perturbation and those without, and see whether batches share any."""
        seen = [(b["perturbation"], b.get("batch", torch.zeros_like(b["index"]))) for b in batches]
        codes, lot = (torch.cat(parts) for parts in zip(*seen, strict=True))
        kinds = torch.unique(torch.cat((lot[:, None], codes), 1), dim=0)[:, 1:]  # of each batch, each once
        self.nested.fill_(self.n_batch > 1 and len(torch.unique(kinds, dim=0)) == len(kinds))
        if isinstance(self.shifts, ExactShifts):
            self.shifts.n_cells.copy_(torch.bincount(codes[codes >= 0], minlength=len(self.shifts.n_cells)))
            self.n_controls.copy_((codes < 0).all(1).sum())

    def model(self, batch: Batch) -> None:
        with self.cells(batch):
            loc = self.prior_loc
            if self.shifts is not None:
                loc, spread = self.shifts(batch["perturbation"])
                pyro.factor("mask", -spread / 2)  # E log p(z | gamma) = log p(z | psi) + this
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            logits = self.head_rho(self.decoder(z, self.covariates(batch)))
            if not self.training:
                pyro.deterministic("rho", torch.softmax(logits, -1), event_dim=1)
            library = batch["size_factor"] if "size_factor" in batch else batch["counts"].sum(-1)
            counts = LIKELIHOODS["nb"].from_logits(logits, library.log().unsqueeze(-1), self.log_dispersion)
            pyro.sample("counts", counts, obs=batch["counts"])

    def guide(self, batch: Batch) -> None:
        with self.cells(batch):
            pyro.sample("z", self.encoder_z(batch["counts"].log1p()))

    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Add the published penalty, where masks are drawn; else set shifts and mask to what is best for the cells."""
        moving = self.decoder.training and torch.is_grad_enabled()  # and not held out, nor frozen below a new guide
        eager = not torch.compiler.is_compiling()
        if moving and eager and self.unfinished() and float(step.scalars.get("progress", 0.0)) >= TURN:
            self.turn_axes()
        if self.beta != 1:
            step.scalars = {**step.scalars, "kl_weight": self.beta * step.scalars.get("kl_weight", 1.0)}
        losses = objective(step)
        if isinstance(self.shifts, ExactShifts):
            if moving:
                # before the turn a mask would take away what no latent has for itself
                settle = self.rotate == "none" or (eager and bool(self.turned))
                self.shifts.update(step.draw("z").detach(), step.batch["perturbation"], settle)
        elif self.shifts is not None and self.prior == "svae":
            losses = add_term(losses, (self.alpha or 0.0) * self.shifts.share.mean())
        elif isinstance(self.shifts, SampledShifts) and self.prior == "svae+":
            price = ((self.alpha or 1.0) - 1) * F.softplus(
                self.shifts.logits
            ).sum()  # -log Beta(psi; 1, alpha) + a constant
            losses = add_term(losses, step.scalars.get("kl_weight", 1.0) * price / step.total)
        return losses

    def turn_axes(self) -> None:
        """Turn the latents to axes in which the shifts are sparse."""
        if not isinstance(self.shifts, ExactShifts):
            return
        mean_over_processes(self.shifts.mean)
        there = self.shifts.n_cells > 0
        shifts = self.shifts.mean[there]
        origin = torch.zeros_like(self.prior_loc) if self.n_controls else shifts.median(0).values
        moved, n_cells = (v.cpu().double().numpy() for v in (shifts - origin, self.shifts.n_cells[there]))
        axes = chosen_axes(self.rotate, moved, n_cells, self.sparsity or PRICE)
        axes = torch.as_tensor(axes, dtype=shifts.dtype, device=shifts.device)
        turn(self.encoder_z, self.decoder, axes, origin)
        self.shifts.turn(axes, origin)
        self.turned.fill_(True)

    def unfinished(self) -> bool:
        """Whether the axes have yet to be turned."""
        return self.rotate != "none" and not bool(self.turned)

    def remarks(self) -> list[str]:
        said = []
        if self.unfinished():
            said.append(
                "the axes of the latents were not turned and no mask set in: fit without compile=True, or rotate='none'"
            )
        size = len(self.prior_loc)
        if size > self.n_perturbation and self.shifts is not None and self.shifts.masked:
            said.append(
                f"there are more latents ({size}) than perturbations ({self.n_perturbation}): not all of them can be "
                f"told apart by what perturbations shift; n_latent={self.n_perturbation} or fewer"
            )
        if self.nested:
            said.append(
                "each batch has perturbations of its own, and no control in common with another: what differs between "
                "batches cannot be told from what perturbations do"
            )
        return said

    def covariates(self, batch: Batch) -> Tensor | None:
        """Batch of each cell [B, n_batch], or None where there is one."""
        return one_hot(batch["batch"], self.n_batch) if self.n_batch > 1 else None
