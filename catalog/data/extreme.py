"""Simulated feedback over many actions, and logs made of labelled data: worlds in which a policy's value is known."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fieldguide.decisions import BanditLog
from fieldguide.inference.checks.ranges import Seed, Size, checked


@dataclass
class ExtremeWorld:
    """Contexts and the expected reward of every action.

    Attributes
    ----------
    context : float32 [n, d]
    reward : float32 [n, K]
        Expected reward.
    relevant : bool [n, K]
        Actions with any.
    """

    context: np.ndarray
    reward: np.ndarray
    relevant: np.ndarray


@checked
def xmc_sim(
    seed: Seed,
    n_actions: Size = 1000,
    n_groups: int = 50,
    n: Size = 5000,
    n_latent: Size = 32,
    n_features: Size = 64,
    low: float = 0.1,
    high: float = 0.9,
) -> ExtremeWorld:
    """Return contexts with a few relevant actions each, of which the popular ones are the least rewarding.

    Actions come in groups with embeddings around a centre; a context belongs to one group and has about five relevant
    actions of it, drawn by Zipf weights without replacement. The expected reward rises with the rank of popularity from
    ``low`` to ``high``. Features are a noisy nonlinear image of the relevant actions' mean embedding.
    """
    rng = np.random.default_rng(seed)
    each = n_actions // n_groups
    centres = rng.normal(size=(n_groups, n_latent))
    embedding = np.repeat(centres, each, 0) + 0.7 * rng.normal(size=(n_groups * each, n_latent))
    mixing = rng.normal(size=(n_latent, n_features)) / n_latent**0.5
    zipf = np.log(1 / np.arange(1, each + 1))
    gain = low + (high - low) * np.arange(each) / (each - 1)
    group = rng.integers(n_groups, size=n)
    count = np.minimum(1 + rng.poisson(4, n), each)
    order = np.argsort(-(zipf + rng.gumbel(size=(n, each))), 1)
    reward, mean = np.zeros((n, n_groups * each), dtype=np.float32), np.zeros((n, n_latent))
    for i in range(n):
        chosen = order[i, : count[i]]
        reward[i, group[i] * each + chosen] = gain[chosen]
        mean[i] = embedding[group[i] * each + chosen].mean(0)
    context = np.tanh(mean @ mixing + 0.5 * rng.normal(size=(n, n_features)))
    return ExtremeWorld(context.astype(np.float32), reward, reward > 0)


@checked
def logging_policy(
    context: np.ndarray, relevant: np.ndarray, seed: Seed, n_hidden: int = 64, epochs: int = 30, rate: float = 3e-3
) -> nn.Module:
    """Return a network trained on labels: softmax cross entropy against the relevant actions, evenly weighted.

    Its softmax over all K actions plays the policy that drew the log. Rows without a relevant action are left out.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, y = torch.as_tensor(context, dtype=torch.float32), torch.as_tensor(relevant, dtype=torch.float32)
        x, y = x[y.sum(1) > 0], y[y.sum(1) > 0]
        network = nn.Sequential(nn.Linear(x.shape[1], n_hidden), nn.ReLU(), nn.Linear(n_hidden, y.shape[1]))
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        share = y / y.sum(1, keepdim=True)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                loss = -(share[rows] * torch.log_softmax(network(x[rows]), -1)).sum(1).mean()
                loss.backward()
                optimizer.step()
    return network.eval()


@torch.no_grad()
def action_probabilities(network: nn.Module, context: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the softmax of a network's scores, float64 [n, K]."""
    scores = network(torch.as_tensor(context, dtype=torch.float32)).double()
    return torch.softmax(scores / temperature, -1).numpy()


@checked
def draw_log(logging: np.ndarray, reward: np.ndarray, seed: Seed, length: int = 5, design: str = "iid") -> BanditLog:
    """Return a log of ``length`` actions a context, drawn from a policy [n, K], with Bernoulli rewards.

    Parameters
    ----------
    reward : array [n, K]
        Expected rewards; of 0 and 1 for labels.
    design : {"iid", "plackett_luce"}
    """
    rng = np.random.default_rng(seed)
    if design == "iid":
        edges = logging.cumsum(1)
        drawn = rng.random((len(logging), length)) * edges[:, -1:]
        action = np.stack([(edges < drawn[:, [j]]).sum(1) for j in range(length)], 1)
    else:
        action = np.argsort(-(np.log(logging) + rng.gumbel(size=logging.shape)), 1)[:, :length]
    expected = np.take_along_axis(reward, action, 1)
    gained = (rng.random(expected.shape) < expected).astype(float)
    chance = np.take_along_axis(logging, action, 1)
    return BanditLog.of(action, gained, chance, logging.shape[1], design=design)
