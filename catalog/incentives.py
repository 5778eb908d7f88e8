"""Incentives: how a response rises with the level of an incentive, in a form that cannot fall (Lopez et al. 2020)."""

from collections.abc import Iterable
from math import log

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.inference import ELBO, Matrix, Program, Schema
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Classes, Size, checked
from fieldguide.inference.data.logged import Levels, Outcome, RowWeight
from fieldguide.inference.program import Batch

SHAPES = ("concave", "monotone", "plain")


@entry(
    "incentives",
    title="Incentives: response of each customer to every level of an incentive, to spend a budget by",
    schema=Schema(
        x=Matrix("X"), level=Levels("level"), response=Outcome("response"), weight=RowWeight("weight", optional=True)
    ),
    objective=ELBO(),
    supports=("elbo",),
    defaults={"max_epochs": 60, "learning_rate": 2e-3, "epsilon": 1e-8, "kl_warmup": 0},
    cite="""
@inproceedings{lopez2020cost,
  title = {Cost-effective incentive allocation via structured counterfactual inference},
  author = {Lopez, Romain and Li, Chenchen and Yan, Xiang and Xiong, Junwu and Jordan, Michael I. and Qi, Yuan and
            Song, Le},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {34},
  year = {2020}
}""",
)
class Incentives(Program):
    r"""Structured incentive response.

    For each customer with features x [F] and the level a of K that was given, lowest first::

        phi = network(x)                                            a representation of the customer
        eta_0 = g_0(phi),  eta_k = eta_(k-1) + d_k(phi)             one number a level, on the link scale
        y ~ Bernoulli(sigmoid(eta_a))   or   Normal(eta_a, scale)

    The steps are ``d_k = softplus(g_k - 1)`` (monotone), or sums of those of the higher levels, so that they fall with
    k (concave: on the link scale, not in probability), or free (plain). A monotone response holds for every customer by
    construction. There are no latents; the ELBO is the likelihood.

    Balance: where the level was not given at random, ``constraints=[Constraint(hsic("phi", "level").measure,
    rule=Penalty(weight), group="theta")]`` makes the representation independent of it (the paper's penalty). It removes
    confounding and with it what predicts the response: choose its weight on held-out rows, zero included.

    Sites: ``phi`` [H], ``response`` [K] (the expected response at every level), ``link`` [K], ``y``.

    Parameters
    ----------
    n_features, n_level : int
        F and K; filled in by ``fit``.
    shape : {"concave", "monotone", "plain"}
    outcome : {"bernoulli", "normal"}
    n_hidden, n_representation, n_head : int
        Widths of the network, of phi, and of the layer between phi and the levels.
    """

    latent = "phi"
    centre: Tensor
    spread: Tensor
    base_rate: Tensor
    unit: Tensor

    @checked
    def __init__(
        self,
        n_features: Size,
        n_level: Classes,
        shape: str = "concave",
        outcome: str = "bernoulli",
        n_hidden: Size = 64,
        n_representation: Size = 16,
        n_head: Size = 64,
    ) -> None:
        super().__init__()
        one_of("shape", shape, SHAPES)
        one_of("outcome", outcome, ("bernoulli", "normal"))
        self.shape, self.outcome, self.n_level = shape, outcome, n_level
        self.network = nn.Sequential(
            nn.Linear(n_features, n_hidden), nn.ELU(), nn.Linear(n_hidden, n_representation), nn.ELU()
        )
        self.head = nn.Sequential(nn.Linear(n_representation, n_head), nn.ELU())
        self.last = nn.Linear(n_head, n_level)
        if outcome == "normal":
            self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))
        self.register_buffer("base_rate", torch.zeros(()))
        self.register_buffer("unit", torch.ones(()))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Standardise features, start at the mean response, and check that every level and both responses occur."""
        batches = list(batches)
        x = torch.cat([b["x"] for b in batches]).double()
        y, level = (torch.cat([b[name] for b in batches]) for name in ("response", "level"))
        if (level < 0).any():
            raise ValueError("the training data have no column of levels")
        absent = sorted(set(range(self.n_level)) - set(level.tolist()))
        if absent:
            raise ValueError(
                f"level number {absent[0]} (of {self.n_level}, from 0) is given to no customer in training"
            )
        self.centre.copy_(x.mean(0))
        deviation = x.std(0, correction=0)
        self.spread.copy_(torch.where(deviation > 0, deviation, 1.0))
        if self.outcome == "normal":
            self.base_rate.copy_(y.mean())
            self.unit.copy_(y.std(correction=0).clamp(min=1e-8))
            return
        if not ((y == 0) | (y == 1)).all():
            row = int(((y != 0) & (y != 1)).nonzero()[0, 0])
            raise ValueError(f"response of training row {row} is {float(y[row]):g}: 0 or 1, or outcome='normal'")
        if y.min() == y.max():
            raise ValueError(f"all responses are {float(y[0]):g}: there is nothing to learn")
        self.base_rate.fill_(log(float(y.mean()) / (1 - float(y.mean()))))

    def levels(self, raw: Tensor) -> Tensor:
        """Return the link at every level [..., K] from the last layer's output [..., K]."""
        first, rest = raw[..., :1], raw[..., 1:]
        if self.shape == "plain":
            return raw
        steps = F.softplus(rest - 1)
        if self.shape == "concave":
            steps = steps.flip(-1).cumsum(-1).flip(-1) / (self.n_level - 1)
        return torch.cat([first, first + steps.cumsum(-1)], -1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the representation [B, H], and the input of the last layer [B, n_head]."""
        phi = self.network((x - self.centre) / self.spread)
        return phi, self.head(phi)

    def link(self, x: Tensor) -> Tensor:
        """Return the link at every level [B, K]."""
        return self.base_rate + self.unit * self.levels(self.last(self.features(x)[1]))

    def expected(self, link: Tensor) -> Tensor:
        """Return the expected response from the link."""
        return torch.sigmoid(link) if self.outcome == "bernoulli" else link

    def model(self, batch: Batch) -> None:
        phi, inputs = self.features(batch["x"])
        link = self.base_rate + self.unit * self.levels(self.last(inputs))
        own = link.gather(-1, batch["level"].clamp(min=0)[:, None])[..., 0]
        if self.outcome == "bernoulli":
            likelihood = dist.Bernoulli(logits=own, validate_args=False)
        else:
            likelihood = dist.Normal(own, self.unit * self.log_scale.exp())
        weight = batch.get("weight")
        with self.cells(batch):
            pyro.deterministic("phi", phi, event_dim=1)
            pyro.deterministic("link", link, event_dim=1)
            pyro.deterministic("response", self.expected(link), event_dim=1)
            with pyro.poutine.scale(scale=torch.ones_like(own) if weight is None else weight):
                pyro.sample("y", likelihood, obs=batch["response"])

    def guide(self, batch: Batch) -> None:
        """There are no latents."""
