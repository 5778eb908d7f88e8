"""M-VAE: classes learnt from labels of which some are wrong (Langevin et al. 2018)."""

from collections.abc import Callable, Iterable
from math import log
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.catalog.parts.guides import Encoder
from fieldguide.catalog.parts.likelihoods import NegativeBinomial
from fieldguide.catalog.parts.networks import Layers, join, one_hot
from fieldguide.inference import ELBO, Category, Counts, Program, Schema, SchemaError
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Classes, Number, Share, Size, Weight, checked
from fieldguide.inference.data.fields import UnitInterval, Values
from fieldguide.inference.data.labels import Annotations
from fieldguide.inference.program import Batch
from fieldguide.inference.step import add_term

FORMS = ("A", "B", "C")
OBSERVATIONS = ("bernoulli", "gaussian", "nb")
LEAST = 1e-6
"""Least probability of a wrong label: its logarithm is a number, whatever was learnt."""
SPEED = {"A": 1.0, "B": 40.0, "C": 40.0}
"""How much faster the noise matrix learns than the networks; see `MVAE`."""
WEIGHT = {"A": 1.0, "B": 5.0, "C": 5.0}
"""Default weight of the classification term of each form."""


@entry(
    "mvae",
    title="M-VAE: classes from labels of which some are wrong, by one annotator or several, with the noise matrix",
    schema=Schema(
        x=UnitInterval("x", optional=True),
        values=Values("values", optional=True),
        counts=Counts("X", optional=True),
        labels=Annotations("labels"),
        batch=Category("batch", optional=True),
    ),
    objective=ELBO(kl="analytic"),
    defaults={
        "max_epochs": 120,
        "learning_rate": 3e-3,
        "epsilon": 1e-8,
        "cooldown": 0.3,
        "kl_warmup": 0,
        "validation": 0.0,
    },
    cite="""
@article{langevin2018deep,
  title = {A Deep Generative Model for Semi-Supervised Classification with Noisy Labels},
  author = {Langevin, Maxime and Mehlman, Edouard and Regier, Jeffrey and Lopez, Romain and Jordan, Michael I. and
            Yosef, Nir},
  journal = {arXiv preprint arXiv:1809.05957},
  year = {2018}
}""",
)
class MVAE(Program):
    r"""M-VAE.

    For each cell with class c of C, annotators a = 1 ... A who may each have given it a label y_a, and data x::

        c ~ Categorical(p)               u ~ Normal(0, I)
        z ~ Normal(network(c, u))        x ~ Bernoulli, Normal or NegativeBinomial(network(z))
        y_a ~ Categorical(T_a[c])        where annotator a gave a label

    T_a is the noise matrix of annotator a: row c has the probabilities of the labels that cells of class c are given.
    With several annotators this is the model of Dawid and Skene (1979), with a VAE in place of constant class shares.
    The classes are summed out in every weight (see `fieldguide.inference.weights.enumeration`).

    The guide is q(z | x) q(c | z, y) q(u | z, c), where q(c | z) is a classifier that sees no label, and

        q(c | z, y) = q(c | z) prod_a T_a[c, y_a] / sum over c

    corrects it by the labels that there are; T is a constant in it. So T is learnt as a part of the model only, and
    without noise (T = I) labelled cells have the class of their label, as in M1+M2.

    Training minimises the objective plus, with z ~ q(z | x), a term that belongs to no density (`training_loss`):

    | `form` | objective | term, mean over all cells |
    | --- | --- | --- |
    | A | with q(c given z) for the guide (the paper) | (weight - 1) x minus sum_c q(c given z) log T[c, y] |
    | B | of x alone | weight x minus log sum_c q(c given z) T[c, y] |
    | C | as above: the tightest bound, and the default | weight x minus log sum_c q(c given z) T[c, y] |

    The form matters in training alone. Bounds, evidence and posteriors are those of the model with its labels.

    By default ``fit`` holds no cell out, because every label counts where most are wrong: on digits with 60 % of wrong
    labels, a tenth of the images more is worth 0.04 of accuracy.

    Rows of T have the prior Dirichlet(1, ..., 1 + ``diagonal``, ..., 1), and T is at the mode (the prior is added to
    the loss, at the share 1/N of each cell). It is stored as the softmax of ``speed`` times a parameter: the steps
    of Adam do not depend on the size of a gradient (if its epsilon is small: the entry's is 1e-8), so the matrix learns
    ``speed`` times faster than the networks by one and the same learning rate.

    Sites: ``z`` [D], ``u`` [U], ``c`` (one-hot [C]), ``label_a`` for each annotator, ``x`` / ``values`` [F] or
    ``counts`` [G] (with ``rho``, proportions [G], outside training); a posterior also has ``c_posterior`` and
    ``c_guide``, the probabilities of the classes.

    Parameters
    ----------
    n_labels, n_annotators, n_features, n_values, n_genes, n_batch : int
        What the data implies; filled in by ``fit``. Data are one of ``x`` (in [0, 1]), ``values`` (real numbers) and
        ``counts``.
    form : {"A", "B", "C"}
    weight : float, optional
        Weight of the classification term; by default 1 for ``A``, which is then the bound of the paper, and 5 for the
        others. For ``C`` it comes on top of the bound.
    speed : float, optional
        By default 1 for ``A`` and 40 for the others: at 1 the matrix hardly moves, but ``A`` collapses
        at 15. At 0 the matrix stays as it is at the start; with ``initial`` near 1, the labels are right, and the form
        ``C`` is M1+M2.
    initial : float
        Diagonal of T at the start.
    diagonal : float
        Of the prior, in labels: so many cells of each class are taken to have been seen with the right label.
    observation : {"bernoulli", "gaussian", "nb"}, optional
        By default what fits the data: Bernoulli for ``x``, Gaussian (one standard deviation a feature) for ``values``,
        negative binomial for ``counts``. Features in [0, 1] may be Gaussian.
    n_latent, n_second : int, optional
        D of z and U of u; by default 16 and 8, for counts 10 and 10.
    n_hidden : int
        Width of all networks, which have one hidden layer. With counts, those from x to z and back are normalised over
        the minibatch, as in ``scvi``.
    dropout : float
        Of the network from x to z.
    guide : {"mean_field", "student_t", "full_covariance", "flow"}
        Family of q(z | x) and q(u | z, c), see `fieldguide.catalog.parts.guides`.
    classes : {"learned", "uniform"}
        Prior p of the classes; "uniform", as published, takes classes of unequal size for one another.
    """

    latent = "z"
    warmup = ("z", "u", "c")

    @checked
    def __init__(
        self,
        n_labels: Classes,
        n_annotators: Size = 1,
        n_features: Number = 0,
        n_values: Number = 0,
        n_genes: Number = 0,
        n_batch: Size = 1,
        form: str = "C",
        weight: Weight | None = None,
        speed: Weight | None = None,
        initial: float = 0.8,
        diagonal: Weight = 1.0,
        observation: str | None = None,
        n_latent: Size | None = None,
        n_second: Size | None = None,
        n_hidden: Size = 128,
        dropout: Share = 0.0,
        guide: str = "mean_field",
        classes: str = "learned",
    ) -> None:
        super().__init__()
        self.field, n_inputs = _data({"x": n_features, "values": n_values, "counts": n_genes})
        self.observation = observation or {"x": "bernoulli", "values": "gaussian", "counts": "nb"}[self.field]
        one_of("form", form, FORMS)
        one_of("observation", self.observation, OBSERVATIONS)
        one_of("classes", classes, ("learned", "uniform"))
        counts = self.field == "counts"
        if counts != (self.observation == "nb") or (self.field, self.observation) == ("values", "bernoulli"):
            raise ValueError(f"observation='{self.observation}' is not for the field '{self.field}'")
        if not 1 / n_labels < initial < 1:
            raise ValueError(
                f"initial must be between 1/{n_labels} (one over the number of classes) and 1, not {initial:g}"
            )
        n_latent, n_second = n_latent or (10 if counts else 16), n_second or (10 if counts else 8)
        self.n_labels, self.n_annotators, self.n_batch = n_labels, n_annotators, n_batch
        self.form, self.diagonal = form, diagonal
        self.weight = WEIGHT[form] if weight is None else weight
        self.speed = SPEED[form] if speed is None else speed
        plain = {"batch_norm": False}
        self.encoder_z = Encoder(n_inputs, n_latent, n_hidden, guide, dropout=dropout, batch_norm=counts)
        self.encoder_c = nn.Sequential(nn.Linear(n_latent, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_labels))
        self.encoder_u = Encoder(n_latent + n_labels, n_second, n_hidden, guide, **plain)
        self.prior_z = Encoder(n_second + n_labels, n_latent, n_hidden, **plain)
        self.decoder = Layers(n_latent, n_hidden, 1, n_batch if n_batch > 1 else 0, batch_norm=counts)
        self.head = nn.Linear(n_hidden, n_inputs)
        if self.observation == "nb":
            self.log_dispersion = nn.Parameter(torch.randn(n_inputs))
        elif self.observation == "gaussian":
            self.raw_scale = nn.Parameter(torch.zeros(n_inputs))
        right = log(initial * (n_labels - 1) / (1 - initial)) / (self.speed or 1)
        start = right * torch.eye(n_labels).repeat(n_annotators, 1, 1)
        if self.speed:
            self.noise_logits = nn.Parameter(start)
        else:
            self.register_buffer("noise_logits", start)
        if classes == "learned":
            self.class_logits = nn.Parameter(torch.zeros(n_labels))
        else:
            self.register_buffer("class_logits", torch.zeros(n_labels))
        self.register_buffer("origin", torch.zeros(n_second))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Check that every class and every annotator has a label among the training cells."""
        codes = torch.cat([b["labels"] for b in batches])
        for what, n, present in (
            ("class", self.n_labels, codes[codes >= 0].unique()),
            ("annotator", self.n_annotators, torch.nonzero((codes >= 0).any(0)).flatten()),
        ):
            absent = sorted(set(range(n)) - set(present.tolist()))
            if absent:
                raise SchemaError(
                    f"field 'labels': {what} number {absent[0]} (of {n}, from 0) has no label among training cells: "
                    "hold out others"
                )

    def remarks(self) -> list[str]:
        """Return a sentence for each row of a noise matrix whose most probable label is not the right one."""
        best = self.log_noise().detach().argmax(-1).tolist()
        return [
            f"noise matrix of annotator {a}: class {c} is most often labelled {to}, so the matrix is not diagonally "
            "dominant and classes may be permuted; a larger diagonal= or initial= keeps them in place"
            for a, rows in enumerate(best)
            for c, to in enumerate(rows)
            if to != c
        ]

    def log_noise(self) -> Tensor:
        """Return the log of the noise matrices [A, C, C]: annotator, true class, label."""
        matrices = torch.softmax((self.speed or 1) * self.noise_logits, -1)
        return ((1 - self.n_labels * LEAST) * matrices + LEAST).log()

    def noise(self) -> np.ndarray:
        """Return the noise matrices as learnt, float64 [A, C, C]: annotator, true class, label; rows sum to one."""
        return self.log_noise().detach().double().exp().cpu().numpy()

    def model(self, batch: Batch) -> None:
        log_noise = self.log_noise()
        with self.cells(batch):
            c = pyro.sample("c", dist.OneHotCategorical(logits=self.class_logits), infer={"enumerate": "parallel"})
            if not (self.training and self.form == "B"):
                for a, codes in enumerate(batch["labels"].unbind(-1)):
                    with pyro.poutine.mask(mask=codes >= 0):
                        given = dist.Categorical(logits=c @ log_noise[a])
                        pyro.sample(f"label_{a}", given, obs=codes.clamp(min=0))
            u = pyro.sample("u", dist.Normal(self.origin, 1.0).to_event(1))
            z = pyro.sample("z", self.prior_z(join(u, c)))
            pyro.sample(self.field, self.observe(z, batch), obs=batch[self.field])

    def guide(self, batch: Batch) -> None:
        with self.cells(batch):
            z = pyro.sample("z", self.encoder_z(self.features(batch)))
            logits = torch.log_softmax(self.encoder_c(z), -1)
            if not (self.training and self.form in "AB"):
                logits = logits + self.evidence(batch, self.log_noise().detach())
            c = pyro.sample("c", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("u", self.encoder_u(join(z, c)))

    def features(self, batch: Batch) -> Tensor:
        """What the guide sees of the data, [B, F]: counts as log(1 + x)."""
        return batch["counts"].log1p() if self.field == "counts" else batch[self.field]

    def observe(self, z: Tensor, batch: Batch) -> Any:
        """Distribution of the data [..., B, F] given z [..., B, D]."""
        logits = self.head(self.decoder(z, one_hot(batch["batch"], self.n_batch) if self.n_batch > 1 else None))
        if self.observation == "bernoulli":
            return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
        if self.observation == "gaussian":
            return dist.Normal(logits, F.softplus(self.raw_scale) + 1e-3).to_event(1)
        if not self.training:
            pyro.deterministic("rho", torch.softmax(logits, -1), event_dim=1)
        library = batch["counts"].sum(-1, keepdim=True).log()
        return NegativeBinomial.from_logits(logits, library, self.log_dispersion)

    def evidence(self, batch: Batch, log_noise: Tensor) -> Tensor:
        """Log probability of a cell's labels under each true class, [B, C]; zero where it has none."""
        codes = batch["labels"]
        annotators = torch.arange(self.n_annotators, device=codes.device)
        given = log_noise[annotators, :, codes.clamp(min=0)]  # [B, A, C]
        return torch.where((codes >= 0)[..., None], given, 0.0).sum(1)

    def training_loss(self, step: Any, objective: Callable) -> Any:
        """Return the objective, the classification term, and the prior of the noise matrix; see the class."""
        losses = objective(step)
        term = self.classification(step.batch) + self.penalty() / (step.total or len(step.batch["labels"]))
        return add_term(losses, term)

    def classification(self, batch: Batch) -> Tensor:
        """Classification term of the form, at one draw of z from q(z | x): mean over the cells of a minibatch."""
        log_q = torch.log_softmax(self.encoder_c(self.encoder_z(self.features(batch)).rsample()), -1)
        given = self.evidence(batch, self.log_noise())
        if self.form == "A":
            return -(self.weight - 1) * (log_q.exp() * given).sum(-1).mean()
        return -self.weight * torch.logsumexp(log_q + given, -1).mean()

    def penalty(self) -> Tensor:
        """Minus the log prior density of the noise matrices, but for a constant."""
        return -self.diagonal * self.log_noise().diagonal(dim1=-2, dim2=-1).sum()


def _data(sizes: dict[str, int]) -> tuple[str, int]:
    """Name and width of the one field of data that there is."""
    present = [name for name, size in sizes.items() if size]
    if len(present) != 1:
        there = f"both '{present[0]}' and '{present[1]}'" if present else "none"
        raise SchemaError(
            f"the data must be one of 'x' (features in [0, 1]), 'values' (real numbers), 'counts'; there is {there}: "
            "say where it is and switch the others off, such as fields={'x': 'X', 'counts': None}"
        )
    return present[0], sizes[present[0]]
