"""POXM: a policy over very many actions, from logged feedback among the logging policy's best (Lopez et al. 2021)."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fieldguide.catalog.declare import entry
from fieldguide.inference import Matrix, OffPolicyValue, Program, Schema
from fieldguide.inference.checks.arguments import one_of
from fieldguide.inference.checks.ranges import Size, checked
from fieldguide.inference.data.fields import Values
from fieldguide.inference.data.logged import Codes, Items
from fieldguide.inference.program import Batch

SPARSE = 50_000
"""Actions from which on only those that a minibatch names are updated (sparse gradients)."""


@entry(
    "poxm",
    title="POXM: policies over up to a million actions, from the log of another policy",
    schema=Schema(
        x=Matrix("X"),
        candidates=Codes("obsm/candidates", of="actions"),
        log_propensity=Values("obsm/log_propensity"),
        position=Codes("obsm/position", later=False),
        reward=Items("obsm/reward"),
        weight=Items("obsm/weight"),
    ),
    objective=OffPolicyValue(),
    supports=("elbo",),
    defaults={"max_epochs": 10, "learning_rate": 2e-3, "epsilon": 1e-8, "kl_warmup": 0},
    cite="""
@inproceedings{lopez2021learning,
  title = {Learning from extreme bandit feedback},
  author = {Lopez, Romain and Dhillon, Inderjit S. and Jordan, Michael I.},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {35},
  year = {2021}
}""",
)
class POXM(Program):
    r"""Policy optimisation for extreme action spaces.

    For each context with features x [F] and p candidate actions (the ones that the logging policy rho takes most)::

        score_a = embedding_a . network(x) + bias_a  (+ log rho(a | x))    for the p candidates only
        a ~ Categorical(softmax(score))

    There are no latents, and the guide is empty. The default objective is the off-policy value (`OffPolicyValue`);
    under the ELBO the program imitates the logged actions. Nothing of size contexts x actions is ever made: a
    step costs B p.

    Sites: ``log_policy`` [p], log probabilities of the candidates; ``candidates`` [p], their codes; ``a`` [l],
    places of the logged actions among them.

    Make the data with `fieldguide.catalog.policy_data`, or fit and evaluate with `fieldguide.catalog.learn_policy`.

    Parameters
    ----------
    n_features : int
        F; filled in by ``fit``.
    n_actions : int
        K; by default as many as the candidates of the training data name.
    n_hidden : int
        Width of the network's one layer, and so of the actions' embeddings.
    start : {"uniform", "logging"}
        "logging": scores are added to the logging policy's log probabilities and start at zero, so that training
        starts from the logging policy (a warm start). "uniform": they are all there is.
    """

    latent = "log_policy"

    @checked
    def __init__(
        self,
        n_features: Size,
        n_actions: Size,
        n_hidden: Size = 128,
        start: str = "uniform",
    ) -> None:
        super().__init__()
        one_of("start", start, ("uniform", "logging"))
        self.start = start
        self.network = nn.Sequential(nn.Linear(n_features, n_hidden), nn.ReLU())
        self.embedding = nn.Embedding(n_actions, n_hidden, sparse=n_actions > SPARSE)
        self.bias = nn.Embedding(n_actions, 1, sparse=n_actions > SPARSE)
        with torch.no_grad():
            self.embedding.weight.uniform_(-1, 1).mul_(0.0 if start == "logging" else n_hidden**-0.5)  # as a layer's
            self.bias.weight.zero_()

    def scores(self, x: Tensor, actions: Tensor) -> Tensor:
        """Return the scores [B, p] of some actions [B, p] in contexts x [B, F]."""
        return (self.embedding(actions) * self.network(x)[..., None, :]).sum(-1) + self.bias(actions)[..., 0]

    def model(self, batch: Batch) -> None:
        candidates, position = batch["candidates"], batch["position"]
        scores = self.scores(batch["x"], candidates.clamp(min=0))
        if self.start == "logging":
            scores = scores + batch["log_propensity"]
        scores = scores.masked_fill(candidates < 0, -torch.inf)
        log_policy = torch.log_softmax(scores, -1)
        with self.cells(batch):
            pyro.deterministic("candidates", candidates, event_dim=1)
            pyro.deterministic("log_policy", log_policy, event_dim=1)
            logged = dist.Categorical(logits=log_policy[..., None, :], validate_args=False).mask(position >= 0)
            pyro.sample("a", logged.to_event(1), obs=position.clamp(min=0))

    def guide(self, batch: Batch) -> None:
        """There are no latents."""
