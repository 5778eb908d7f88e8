"""M1+M2: a deep generative classifier that learns from few labels (Kingma et al. 2014; Lopez et al. 2020)."""

from collections.abc import Callable, Iterable
from math import log
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import SeluEncoder
from fieldguide.catalog.parts.networks import image_layers, join
from fieldguide.inference import ELBO, Program, Schema
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Classes, Share, Size, Weight, checked
from fieldguide.inference.data.fields import UnitInterval
from fieldguide.inference.data.labels import Labels
from fieldguide.inference.program import Batch, batch_size
from fieldguide.inference.step import add_term

CERTAIN = 1000.0
"""Difference of logits that stands for certainty: its exponential is zero, but its gradient is a number."""
ANNEAL = (500, 5e-4, 0.5)
"""The relaxation's temperature is max(0.5, exp(-5e-4 t)) after t steps, changed every 500 (published)."""


@entry(
    "m1m2",
    title="M1+M2: semi-supervised classes of feature vectors or images, with probabilities to decide by",
    schema=Schema(x=UnitInterval("X"), labels=Labels("labels")),
    objective=ELBO(kl="analytic"),
    cite="""
@inproceedings{lopez2020decision,
  title = {Decision-making with auto-encoding variational Bayes},
  author = {Lopez, Romain and Boyeau, Pierre and Yosef, Nir and Jordan, Michael I. and Regier, Jeffrey},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {33},
  year = {2020}
}""",
)
class M1M2(Program):
    r"""M1+M2.

    For each cell with features x [F] in [0, 1] and class c of C::

        c ~ Categorical(1/C)             u ~ Normal(0, I)
        z ~ Normal(network(c, u))        x_f ~ Bernoulli(network(z)_f)

    The guide is q(z | x) q(c | z) q(u | z, c). Where the label of a cell is known, c is that label. The class is
    summed out in every weight (see `fieldguide.inference.weights.enumeration`), so nothing about it is sampled.

    Training minimises (published weights)::

        mean over unlabelled cells of the objective + labelled * mean over labelled cells of the objective
            + classification * mean over labelled cells of -log q(label | z),    z ~ q(z | x)

    Only the objective knows a weight of importance sampling: the last term is added to the finished loss
    (`training_loss`), and the first two are weighted there, cell by cell. So bounds, evidence and posteriors are those
    of the model. The means are over the training data: in a minibatch each labelled cell counts 1 / (share of labelled
    cells), whatever number of them it contains.

    Sites: ``z`` [D], ``u`` [D], ``c`` (one-hot [C]), ``label``, ``x`` [F]; a posterior also has ``c_posterior`` and
    ``c_guide``, the probabilities of the classes.

    Parameters
    ----------
    n_features, n_labels : int
        F and C; filled in by ``fit``.
    n_latent : int
        D, of z and of u.
    n_hidden : int
        Width of the networks (published: 128; the one from z to x: 784, as wide as the image).
    n_decoder : int, optional
        Width of the network from z to x; ``n_features`` by default, as published.
    encoder : {"dense", "conv"}
        Network of q(z | x): two dense layers, or the published three convolutions before them, for images of 28 x 28.
    n_channels : int
        Channels of the first convolution; twice and four times as many of the others.
    guide : {"mean_field", "student_t", "full_covariance", "flow"}
        Family of q(z | x) and q(u | z, c), see `fieldguide.catalog.parts.guides`.
    dropout : float
        Of the guide's networks.
    classes : {"enumerated", "relaxed"}
        How unlabelled classes are handled in training. "relaxed": drawn from the guide by the Gumbel-softmax
        relaxation, as published (but differentiated, and never rounded), with model and guide both relaxed at the same
        falling temperature (buffer ``temperature``). Then the training loss is not a bound of the discrete model;
        outside training the classes are summed out in any case.
    labelled, classification : float
        Weights of the loss, see above. ``labelled=None`` counts each cell once, labelled or not.
    """

    latent = "z"
    warmup = ("z", "u", "c")
    labelled_share: Tensor
    temperature: Tensor
    steps: Tensor

    @checked
    def __init__(
        self,
        n_features: Size,
        n_labels: Classes,
        n_latent: Size = 10,
        n_hidden: Size = 128,
        n_decoder: Size | None = None,
        encoder: str = "dense",
        n_channels: Size = 32,
        guide: str = "mean_field",
        dropout: Share = 0.1,
        classes: str = "enumerated",
        labelled: Weight | None = 0.05,
        classification: Weight = 50.0,
    ) -> None:
        super().__init__()
        one_of("encoder", encoder, ("dense", "conv"))
        one_of("classes", classes, ("enumerated", "relaxed"))
        self.n_labels, self.classes = n_labels, classes
        self.labelled, self.classification = labelled, classification
        body = image_layers(n_features, n_channels, dropout) if encoder == "conv" else nn.Identity()
        width = 4 * n_channels if encoder == "conv" else n_features
        self.encoder_z = SeluEncoder(width, n_latent, n_hidden, dropout, guide, body)
        self.encoder_c = nn.Sequential(
            nn.Linear(n_latent, n_labels), nn.SELU(), nn.Dropout(dropout), nn.Linear(n_labels, n_labels)
        )
        self.encoder_u = SeluEncoder(n_latent + n_labels, n_latent, n_hidden, dropout, guide)
        self.prior_z = SeluEncoder(n_latent + n_labels, n_latent, n_hidden)
        n_decoder = n_decoder or n_features
        self.decoder = nn.Sequential(nn.Linear(n_latent, n_decoder), nn.SELU(), nn.Linear(n_decoder, n_features))
        self.register_buffer("origin", torch.zeros(n_latent))
        self.register_buffer("even", torch.full((n_labels,), -log(n_labels)))
        self.register_buffer("labelled_share", torch.tensor(0.5))
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("steps", torch.tensor(0))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Learn the share of labelled cells, which the weights of the loss need."""
        known = torch.cat([b["labels"] >= 0 for b in batches])
        if not known.any():
            raise ValueError("no training cell has a label: nothing says what the classes are")
        self.labelled_share.fill_(known.float().mean())

    @property
    def relaxed(self) -> bool:
        """Whether classes are relaxed now: in training only."""
        return self.training and self.classes == "relaxed"

    def model(self, batch: Batch) -> None:
        known, labels = batch["labels"] >= 0, batch["labels"].clamp(min=0)
        with self.cells(batch):
            if self.relaxed:
                observed = F.one_hot(labels, self.n_labels).to(batch["x"].dtype)
                with pyro.poutine.mask(mask=known):
                    pyro.sample("label", dist.OneHotCategorical(logits=self.even), obs=observed)
                with pyro.poutine.mask(mask=~known):
                    c = pyro.sample("c", dist.RelaxedOneHotCategorical(self.temperature, logits=self.even))
                c = torch.where(known[:, None], observed, c)
            else:
                c = pyro.sample("c", dist.OneHotCategorical(logits=self.even), infer={"enumerate": "parallel"})
                with pyro.poutine.mask(mask=known):
                    pyro.sample("label", dist.Delta(c.argmax(-1)), obs=labels)
            u = pyro.sample("u", dist.Normal(self.origin, 1.0).to_event(1))
            z = pyro.sample("z", self.prior_z(join(u, c)))
            logits = self.decoder(z)
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=batch["x"])

    def guide(self, batch: Batch) -> None:
        known, labels = batch["labels"] >= 0, batch["labels"].clamp(min=0)
        observed = F.one_hot(labels, self.n_labels).to(batch["x"].dtype)
        with self.cells(batch):
            z = pyro.sample("z", self.encoder_z(batch["x"]))
            logits = self.encoder_c(z)
            if self.relaxed:
                with pyro.poutine.mask(mask=~known):
                    # Larger logits would put draws on the edge of the simplex, where densities are infinite.
                    relaxed = dist.RelaxedOneHotCategorical(self.temperature, logits=logits.clamp(-10, 10))
                    c = pyro.sample("c", relaxed)
                c = torch.where(known[:, None], observed, c)
            else:
                logits = torch.where(known[:, None], CERTAIN * (observed - 1), logits)
                c = pyro.sample("c", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("u", self.encoder_u(join(z, c)))

    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Return the objective with its cells weighted, plus the classifier's cross entropy; see the class."""
        batch, share = step.batch, self.labelled_share
        known = batch["labels"] >= 0
        if self.training:
            self.anneal()
        if self.labelled is not None:
            cells = batch_size(batch)
            least = 1 / max(step.total or cells, cells)
            step.cell_weights = torch.where(
                known, self.labelled / share.clamp(min=least), 1 / (1 - share).clamp(min=least)
            )
        losses = objective(step)
        term = self.classification * (torch.where(known, self.cross_entropy(batch), 0.0).mean() / share)
        return add_term(losses, term, "phi")

    def cross_entropy(self, batch: Batch) -> Tensor:
        """Return -log q(label | z) [B] at one draw of z from q(z | x); of no meaning where there is no label."""
        logits = self.encoder_c(self.encoder_z(batch["x"]).rsample())
        return F.cross_entropy(logits, batch["labels"].clamp(min=0), reduction="none")

    def anneal(self) -> None:
        """Count a training step and lower the temperature of the relaxation."""
        every, rate, least = ANNEAL
        self.temperature.copy_(torch.exp(-rate * every * (self.steps // every)).clamp(min=least))
        self.steps.add_(1)
