"""Simulated coupons: customers whose response to a level is known, with levels given by a confounded policy."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from fieldguide.inference.checks.ranges import Seed, Size, checked


@dataclass
class CouponWorld:
    """Customers, what they were given, and the truth.

    Attributes
    ----------
    data : AnnData
        ``X`` [n, d]; ``obs``: ``level``, ``response``, ``propensity``, ``weight`` (1 / propensity, at most 10 times
        1 / K).
    truth : float64 [n, K]
        Expected response at every level.
    logging : float64 [n, K]
        Probability that each level was given.
    cost : float64 [K]
    """

    data: anndata.AnnData
    truth: np.ndarray
    logging: np.ndarray
    cost: np.ndarray


@checked
def coupon_sim(
    seed: Seed, n: Size, gamma: float = 1.5, d: int = 10, n_levels: int = 5, cap: float = 10.0
) -> CouponWorld:
    """Return customers whose response rises with the logarithm of the level, at their own rate.

    Customers who would respond anyway are given more (strength ``gamma``). The world is fixed; ``seed`` draws
    customers.
    """
    fixed = torch.Generator().manual_seed(12345)
    w_b, w_s, w_2 = (torch.randn(d, generator=fixed) / d**0.5 for _ in range(3))
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=drawn)
    base = -1.5 + 1.2 * x @ w_b + 0.8 * torch.sin(2 * x @ w_2)
    slope = F.softplus(1.5 * x @ w_s - 0.5 * x @ w_b)
    level = torch.arange(n_levels, dtype=x.dtype)
    truth = torch.sigmoid(base[:, None] + slope[:, None] * torch.log1p(level))
    logging = 0.9 * torch.softmax(gamma * (x @ w_b)[:, None] * (level - 2) / 2, -1) + 0.1 / n_levels
    given = torch.multinomial(logging, 1, generator=drawn)[:, 0]
    response = torch.bernoulli(truth.gather(1, given[:, None])[:, 0], generator=drawn)
    chance = logging.gather(1, given[:, None])[:, 0]
    obs = pd.DataFrame(index=[f"customer{seed}.{i}" for i in range(n)])
    obs["level"], obs["response"], obs["propensity"] = given.numpy(), response.numpy(), chance.double().numpy()
    obs["ips"] = np.minimum(1 / (n_levels * obs["propensity"]), cap)
    customers = anndata.AnnData(x.numpy(), obs=obs)
    return CouponWorld(customers, truth.double().numpy(), logging.double().numpy(), level.double().numpy())
