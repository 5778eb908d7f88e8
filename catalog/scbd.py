"""SCBD: an embedding of what a cell is, and another of where it was seen, by contrast alone (Makino et al. 2025)."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import MeanField
from fieldguide.catalog.parts.images.contrastive import FORMS, dependence, supervised_contrast
from fieldguide.catalog.parts.images.memory import Memory
from fieldguide.catalog.parts.images.networks import ImageDecoder, ResidualEncoder, turned_and_flipped
from fieldguide.catalog.parts.images.observation import LIKELIHOODS, ImageLaw
from fieldguide.inference import ELBO, Balanced, Images, Program, Schema, Supervision
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Number, Scale, Size, Weight, checked
from fieldguide.inference.program import Batch

SITES = ("z_c", "z_s")
START, FULL = 0.3, 0.6
"""Shares of the training before alpha leaves 0, and from which on it is what it is: contrast has to come first."""
RECENT = 0.1
"""Weight of a minibatch in the running means that remarks are made of."""
SHOWN = 5
COLLAPSED, UNLEARNT = 0.02, 0.97


@entry(
    "scbd",
    title="SCBD: images embedded twice, by what they are in every environment and by the environment",
    schema=Schema(image=Images("obsm/image"), label=Supervision("label"), environment=Supervision("environment")),
    objective=ELBO(),
    supports=("elbo",),
    defaults={"learning_rate": 1e-3, "max_epochs": 30},
    cite="""
@misc{makino2025supervised,
  title = {Supervised Contrastive Block Disentanglement},
  author = {Makino, Taro and Park, Ji Won and Tagasovska, Natasa and Kudo, Takamasa and Coelho, Paula and
    Huetter, Jan-Christian and Yao, Heming and Hoeckendorf, Burkhard and Leote, Ana Carolina and Ra, Stephen and
    Richmond, David and Cho, Kyunghyun and Regev, Aviv and Lopez, Romain},
  year = {2025},
  eprint = {2502.07281},
  archivePrefix = {arXiv}
}""",
)
class SCBD(Program):
    r"""SCBD, supervised contrastive block disentanglement: images x [C, S, S] with a label y and an environment e.

    Two encoders give each cell two embeddings on the unit sphere, of which the other cells of its minibatch are the
    context. With S_ij = z_i z_j / tau, and partners of an anchor i drawn by ``softmax_j S_ij``::

        z_c, z_s ~ flat on the sphere
        a partner of the label y_i            is the partner of i by z_c      (supervised contrast)
        a partner of the environment e_i      is the partner of i by z_s      (supervised contrast)
        - alpha * (dependence of partners by z_c on the environment)         (invariance)
        x_ij ~ Normal(D_c(z_c) + D_s(z_s), noise)                             (with a decoder)

    The guides are the embeddings themselves: no draw is made, and every bound of several draws would be the ELBO (it
    alone is supported). The factors couple a minibatch, so that its size is part of the model: they count once a cell,
    and cells have no bounds of their own. The dependence is a penalty, no probability of anything; alpha rises to its
    value between three and six tenths of the training, as an embedding that starts under it collapses to a point.

    Invariance says nothing about *how* labels are told: where the environment and the label go together, both cannot be
    had, and ``within=True`` asks for invariance among cells of one label only.

    Sites: ``z_c`` [d], ``z_s`` [d]; ``r_c`` and ``r_s`` [R], what they are made of, deterministic in the guide;
    ``image`` [C, S, S]. With ``stochastic``, ``u_c`` and ``u_s`` are drawn, z is deterministic, and ``mean_c`` [d],
    the direction of the mean, is what `Fit.latent` reports.

    Parameters
    ----------
    n_channels, image_size, n_label, n_environment : int
        Filled in by ``fit``.
    n_latent : int
        d.
    widths, depth, stem :
        Of the encoders: `fieldguide.catalog.parts.images.networks.ResidualEncoder`. Published: ``widths=(64, 128, 256,
        512), depth=2, stem="imagenet", n_latent=128`` (ResNet-18).
    alpha : float
        Weight of the invariance. What it means depends on the form, on tau and, for "batch", on the minibatch.
    invariance : {"ce", "count", "batch"}
        See `fieldguide.catalog.parts.images.contrastive.dependence`; "batch" as published.
    within : bool
        Whether invariance is asked among cells of one label.
    spurious : {"environment", "both"}
        What z_s is to tell: environments, or label and environment, as published for domain generalisation.
    tau : float
    itself : bool
        Whether an anchor is among its own candidates, as published.
    partners : int
        Least number of cells of each label in a minibatch; 0 to shuffle cells as they are.
    memory : int
        Earlier embeddings that are candidates beside the minibatch in training.
    decoder : {"none", "cut", "joint"}
        "cut": trained on the embeddings, which do not hear of it, as published. "joint": images train them, too.
    likelihood : {"normal", "bernoulli"}
        Of images, with a decoder; Bernoulli for intensities between 0 and 1.
    stochastic : bool
        Guides are Gaussians, normalised to the sphere: each cell has a spread.
    augment : bool
        Turn training images by quarters and flip them. Not for images with an up and a left.
    """

    latent = "z_c"
    warmup = ()
    independent = False
    together: Tensor
    strength: Tensor
    spread: Tensor
    contrast: Tensor

    @checked
    def __init__(
        self,
        n_channels: Size = 1,
        image_size: Size = 32,
        n_label: Size = 2,
        n_environment: Size = 2,
        n_latent: Size = 64,
        widths: Any = (16, 32, 64),
        depth: Size = 1,
        stem: str = "small",
        alpha: Weight = 1.0,
        invariance: str = "ce",
        within: bool = False,
        spurious: str = "environment",
        tau: Scale = 0.1,
        itself: bool = False,
        partners: Number = 8,
        memory: Number = 0,
        decoder: str = "none",
        likelihood: str = "normal",
        stochastic: bool = False,
        augment: bool = False,
    ) -> None:
        super().__init__()
        one_of("invariance", invariance, FORMS)
        one_of("spurious", spurious, ("environment", "both"))
        one_of("decoder", decoder, ("none", "cut", "joint"))
        one_of("likelihood", likelihood, LIKELIHOODS)
        if n_label < 2:
            raise ValueError("there is one label: z_c has nothing to tell apart; give the field 'label' at least two")
        if n_environment < 2:
            raise ValueError("there is one environment: give the field 'environment' a column with two or more")
        if partners == 1:
            raise ValueError("partners=1: an anchor needs another cell of its label, at least 2; 0 shuffles all cells")
        self.n_label, self.n_environment, self.alpha, self.invariance = n_label, n_environment, alpha, invariance
        self.within, self.spurious, self.tau, self.itself = within, spurious, tau, itself
        self.decoding, self.stochastic, self.augment = decoder, stochastic, augment
        self.latent = "mean_c" if stochastic else "z_c"
        self.balanced = Balanced("label", partners) if partners else None
        self.encoder = nn.ModuleDict({s: ResidualEncoder(n_channels, tuple(widths), depth, stem) for s in SITES})
        width, last = self.encoder["z_c"].width, MeanField if stochastic else nn.Linear
        self.encoder_head = nn.ModuleDict(
            {s: nn.Sequential(nn.Linear(width, width), nn.GELU(), last(width, n_latent)) for s in SITES}
        )
        self.n_latent = n_latent
        if decoder != "none":
            self.decoder = nn.ModuleDict({s: ImageDecoder(n_latent, n_channels, image_size) for s in SITES})
            self.law = ImageLaw(n_channels, likelihood)
        self.memory: Any = nn.ModuleDict({s: Memory(memory, n_latent) for s in SITES})
        self.register_buffer("together", torch.zeros(n_label, n_environment, dtype=torch.int64))
        self.register_buffer("strength", torch.tensor(1.0))
        self.register_buffer("spread", torch.tensor(1.0))
        self.register_buffer("contrast", torch.tensor(0.0))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Count the training cells of each label in each environment."""
        for batch in batches:
            places = batch["label"] * self.n_environment + batch["environment"]
            self.together += torch.bincount(places, minlength=self.together.numel()).view_as(self.together)

    def model(self, batch: Batch) -> None:
        with self.cells(batch):
            z = {site: self.embedding(site) for site in SITES}
            y, e = batch["label"], batch["environment"]
            s = self.told_by_s(y, e)
            of_label = self.contrasted(z["z_c"], y, "z_c", y, e)
            pyro.deterministic("contrast_c", of_label, event_dim=0)
            pyro.factor("label_partners", of_label)
            pyro.factor("environment_partners", self.contrasted(z["z_s"], s, "z_s", s, e))
            if self.alpha:
                candidates, labels, environments = self.candidates("z_c", z["z_c"], y, e)
                given = (y, labels) if self.within else (None, None)
                apart = dependence(
                    *(z["z_c"], e, self.tau, self.n_environment, self.invariance, given[0], self.itself),
                    candidates=candidates,
                    of_candidates=environments,
                    within_candidates=given[1],
                )
                pyro.deterministic("dependence", apart, event_dim=0)
                pyro.factor("invariance", -self.alpha * self.strength * apart)
            if self.decoding != "none":
                self.observe(z, batch)

    def guide(self, batch: Batch) -> None:
        with self.cells(batch):
            for site in SITES:
                features = self.encoder[site](batch["image"])
                pyro.deterministic("r" + site[1:], features, event_dim=1)
                head = self.encoder_head[site](features)
                if self.stochastic:
                    pyro.sample("u" + site[1:], head)
                    pyro.deterministic("mean" + site[1:], F.normalize(head.mean, dim=-1), event_dim=1)
                else:
                    pyro.sample(site, dist.Delta(F.normalize(head, dim=-1), event_dim=1))

    def embedding(self, site: str) -> Tensor:
        """Draw an embedding from its prior: flat on the sphere, or a Gaussian that is normalised."""
        if not self.stochastic:
            return pyro.sample(site, dist.ImproperUniform(constraints.sphere, (), (self.n_latent,)))
        flat = dist.Normal(self.spread.new_zeros(self.n_latent), 1.0)
        u = pyro.sample("u" + site[1:], flat.to_event(1))
        return pyro.deterministic(site, F.normalize(u, dim=-1), event_dim=1)

    def told_by_s(self, label: Tensor, environment: Tensor) -> Tensor:
        """Codes [B] of what z_s is to tell; -1 where they are not known."""
        if self.spurious == "environment":
            return environment
        return torch.where((label < 0) | (environment < 0), -1, label * self.n_environment + environment)

    def candidates(self, site: str, z: Tensor, *codes: Tensor) -> tuple[Tensor, ...]:
        """Return who may be a partner: the minibatch and, in training, what is remembered."""
        return self.memory[site].beside(z, *codes) if self.training else (z, *codes)

    def contrasted(self, z: Tensor, codes: Tensor, site: str, *remembered: Tensor) -> Tensor:
        """Log probability of partners with the code of the anchor [B]."""
        candidates, of_candidates, _ = self.candidates(site, z, *remembered)
        return supervised_contrast(z, codes, self.tau, self.itself, candidates, of_candidates)

    def observe(self, z: dict[str, Tensor], batch: Batch) -> None:
        """Images around what both decoders add up to; a mean over pixels, so that it weighs like a factor."""
        told = z if self.decoding == "joint" else {site: value.detach() for site, value in z.items()}
        mean = sum(self.decoder[site](told[site]) for site in SITES)
        image = batch["image"]
        with pyro.poutine.scale(scale=1 / image[0].numel()):
            pyro.sample("image", self.law(mean), obs=image)

    # ---- training ------------------------------------------------------------------------------------------
    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Set the strength of the invariance; remember the embeddings."""
        learning = self.training and torch.is_grad_enabled()
        if learning and self.augment:
            step.batch = step.batch | {"image": turned_and_flipped(step.batch["image"])}
        if learning and "progress" in step.scalars:
            progress = torch.as_tensor(step.scalars["progress"], device=self.strength.device)
            self.strength.copy_(((progress - START) / (FULL - START)).clamp(0, 1))
        losses = objective(step)
        if learning:
            self.note(step)
        return losses

    @torch.no_grad()
    def note(self, step: Any) -> None:
        """Log the parts of the loss, keep running means for remarks, and push the embeddings to the memory."""
        y, e = step.batch["label"], step.batch["environment"]
        z_c, contrast = step.draw("z_c"), -step.value("contrast_c").mean()
        step.log("label_contrast", contrast)
        if self.alpha:
            step.log("dependence", step.value("dependence").mean())
        self.spread.lerp_(1 - z_c.mean(0).square().sum(), RECENT)
        number = len(y) + self.memory["z_c"].number() - (0 if self.itself else 1)
        self.contrast.lerp_(contrast / torch.tensor(float(max(number, 2)), device=contrast.device).log(), RECENT)
        if self.memory["z_c"].size:
            self.memory["z_c"].push(z_c, y, e)
            self.memory["z_s"].push(step.draw("z_s"), self.told_by_s(y, e), e)

    def unfinished(self) -> bool:
        """Whether the invariance has yet to come to its strength."""
        return bool(self.alpha) and float(self.strength) < 1

    def remarks(self) -> list[str]:
        return self.confounded() + self.collapsed()

    def confounded(self) -> list[str]:
        """What the design of the screen does not tell apart."""
        said, cells = [], self.together.sum(1)
        tied = ((self.together > 0).sum(1) == 1) & (cells > 1)
        for which, what in (
            (tied, "in one environment only: what is the label's and what the environment's cannot be told apart"),
            (cells == 1, "on one cell each: it has no partner"),
        ):
            labels = torch.nonzero(which).ravel().tolist()
            if labels:
                names = ", ".join(f"{{label {k}}}" for k in labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")
                said.append(f"{len(labels)} of {len(cells)} labels are {what} ({names})")
        return said

    def collapsed(self) -> list[str]:
        """Whether z_c says anything."""
        if float(self.spread) < COLLAPSED:
            return [
                f"z_c has collapsed: all cells have nearly one embedding (spread {float(self.spread):.3f} of 1). Take "
                "a smaller alpha, invariance='ce', or more cells in a minibatch"
            ]
        if float(self.contrast) > UNLEARNT:
            return [
                f"z_c tells labels apart hardly at all (contrast {float(self.contrast):.2f} of that of an embedding "
                "without any): train longer, with larger minibatches or a smaller alpha"
            ]
        return []
