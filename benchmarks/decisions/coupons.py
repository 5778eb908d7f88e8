"""Budgets spent by estimated responses: simulated coupons, and nested labels of digits.

``coupon_sim``: 2,000 customers whose levels were given by a confounded policy, 4,000 new ones to spend on; seeds 0
to 2. Models: a plain network, the same with capped inverse propensities or with HSIC balance, monotone, monotone
with balance, concave; one network, Adam 2e-3, minibatches of 256, at most 60 epochs with a fifth held out. Regret
closed: share of the way from the even allocation (two neighbouring levels for everyone) to that by the true
responses.

``digits``: level a is right for an image whose digit is at most 2 a + 1, so the response cannot fall with the
level; a logistic regression on 5 % of the labels, mixed with a fifth uniform, is the logging policy.

    python -m benchmarks.decisions.coupons [--seeds 3] [--parts coupons weights digits baselines intervals]

``baselines``: a logistic regression for each level (T-learner; better than networks), and policies learnt from the
log alone: CRM (inverse propensities of at most 10, minus half a standard error; Swaminathan and Joachims 2015) and
BanditNet (rewards translated by the log's mean; Joachims et al. 2018), both for response minus price times cost, the
price found by bisection so that the training customers spend the budget. Their settings were chosen on seeds 50 and 51.

``intervals``: 90 % intervals of the response by a `response_ensemble` of 20 and by one fit, and what is spent where
coupons cost when they are used (chosen on seeds 50 to 54).

Published: no code and no table of the paper could be read; the figures beside ours are those of a prototype of the same
methods (Lopez et al. 2020 as described).
"""

import argparse
import warnings

import anndata
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from benchmarks.common import show, verdict
from fieldguide.catalog import policy_data, response, response_draws, response_ensemble
from fieldguide.catalog.data.coupons import coupon_sim
from fieldguide.catalog.procedures.policies import policy_of
from fieldguide.decisions import BanditLog, allocate
from fieldguide.decisions.policies.policy import Policy
from fieldguide.inference import Constraint, OffPolicyValue, Penalty, fit, hsic

BUDGETS = (0.5, 1.0, 2.0)
MODELS = {
    "plain": {"shape": "plain"},
    "plain, IPS weights": {"shape": "plain", "fields": {"weight": "ips"}},
    "plain, HSIC 10": {"shape": "plain", "balance": 10.0},
    "monotone": {"shape": "monotone"},
    "monotone, HSIC 3": {"shape": "monotone", "balance": 3.0},
    "monotone, HSIC 10": {"shape": "monotone", "balance": 10.0},
    "concave": {"shape": "concave"},
}
PROTOTYPE = {
    "plain": (0.154, 0.175, 0.59, 0.58, 0.49),
    "plain, IPS weights": (0.174, 0.188, 0.55, 0.53, 0.46),
    "plain, HSIC 10": (0.203, 0.234, 0.38, 0.33, 0.16),
    "monotone": (0.101, 0.089, 0.85, 0.84, 0.78),
    "monotone, HSIC 3": (0.132, 0.121, 0.80, 0.70, 0.49),
    "monotone, HSIC 10": (0.177, 0.189, 0.49, 0.37, 0.13),
    "concave": (0.100, 0.086, 0.90, 0.89, 0.89),
}
COLUMNS = ("RMSE", "RMSE effect", *(f"regret closed, {b:g}" for b in BUDGETS))


def fitted(data, shape, seed, fields=None, balance=None):
    constraints = () if balance is None else (balanced(balance),)
    settings = {"batch_size": 256, "validation": 0.2, "seed": seed, "progress": False}
    return fit("incentives", data, shape=shape, fields=fields, constraints=constraints, **settings)


def balanced(weight):
    """HSIC of representation and level, at a weight for each customer."""
    return Constraint(hsic("phi", "level", estimator="v").measure, rule=Penalty(weight), group="theta")


def even(truth, budget):
    """Value of the even allocation that spends the budget, levels costing 0, 1, 2, ..."""
    low = min(int(budget), truth.shape[1] - 1)
    high = min(low + 1, truth.shape[1] - 1)
    return (1 - budget + low) * truth[:, low].mean() + (budget - low) * truth[:, high].mean()


def closed(truth, estimate, cost, budget):
    """Share of the way from the even allocation to that by the truth."""
    n = len(truth)
    value = (allocate(estimate, cost, budget * n).policy.to_numpy() * truth).sum() / n
    best = allocate(truth, cost, budget * n).value / n
    return (value - even(truth, budget)) / (best - even(truth, budget))


def coupons(seeds):
    rows, transfers = [], []
    for seed in range(seeds):
        train, test = coupon_sim(100 + seed, 2000), coupon_sim(10_000 + seed, 4000)
        for name, options in MODELS.items():
            found = fitted(train.data, seed=seed, **options)
            q = response(found, test.data).to_numpy()
            row = {"model": name, "seed": seed, "RMSE": ((q - test.truth) ** 2).mean() ** 0.5}
            effect = (q - q[:, :1]) - (test.truth - test.truth[:, :1])
            row["RMSE effect"] = (effect**2).mean() ** 0.5
            row |= {f"regret closed, {b:g}": closed(test.truth, q, test.cost, b) for b in BUDGETS}
            rows.append(row)
            print(row, flush=True)
            if name == "concave":
                own = response(found, train.data).to_numpy()
                for b in BUDGETS:
                    here = allocate(q, test.cost, b * 4000).diagnostics["spent"].iloc[0] / 4000 / b
                    rule = allocate(own, train.cost, b * 2000)
                    transfers.append((here, test.cost[rule.predict(q, test.cost)].mean() / b))
    table = pd.DataFrame(rows)
    means = table.groupby("model", sort=False)[list(COLUMNS)].mean()
    both = [
        {"model": m} | {c: f"{means.loc[m, c]:.3f} ({p:.3f})" for c, p in zip(COLUMNS, PROTOTYPE[m], strict=True)}
        for m in means.index
    ]
    show(f"coupon_sim, means over {seeds} seeds (in brackets: the prototype)", both)
    plain, monotone, concave = (means.loc[m] for m in ("plain", "monotone", "concave"))
    ratio, off = monotone["RMSE"] / plain["RMSE"], np.abs(np.array(transfers) - 1).max(0)
    ok = [verdict(f"RMSE of monotone over plain at most 0.80: {ratio:.3f}", ratio <= 0.8)]
    for b in (0.5, 1.0):
        by = monotone[f"regret closed, {b:g}"] - plain[f"regret closed, {b:g}"]
        ok.append(verdict(f"monotone closes 0.15 more than plain at {b:g}: {by:+.3f}", by >= 0.15))
    for b in BUDGETS:
        by = concave[f"regret closed, {b:g}"] - monotone[f"regret closed, {b:g}"]
        ok.append(verdict(f"concave closes at most 0.02 less than monotone at {b:g}: {by:+.3f}", by >= -0.02))
    ok.append(
        verdict(f"spending within 2 % where the price is solved on these customers: {off[0]:.3f}", off[0] <= 0.02)
    )
    ok.append(verdict(f"within 5 % where it comes from other customers: {off[1]:.3f}", off[1] <= 0.05))
    return all(ok)


def weights(seeds):
    """HSIC weights chosen by held-out risk, weighted to the target, are not worse than none."""
    rows = []
    for seed in range(seeds):
        train, test = coupon_sim(100 + seed, 2000), coupon_sim(10_000 + seed, 4000)
        risk, error = {}, {}
        for weight in (0.0, 0.1, 1.0):
            found = fitted(train.data, "monotone", seed, balance=weight or None)
            held = train.data[found.validation_rows]
            q = response(found, held).to_numpy()[np.arange(held.n_obs), held.obs["level"]].clip(1e-6, 1 - 1e-6)
            y = held.obs["response"].to_numpy()
            risk[weight] = -(held.obs["ips"] * (y * np.log(q) + (1 - y) * np.log(1 - q))).mean()
            error[weight] = ((response(found, test.data).to_numpy() - test.truth) ** 2).mean() ** 0.5
        best = min(risk, key=risk.get)
        rows.append({"seed": seed, "chosen": best, "risk": risk[best] / risk[0.0], "RMSE": error[best] / error[0.0]})
    show("Weight of HSIC chosen by held-out risk; risk and RMSE over those without", rows)
    worst = max(row["risk"] for row in rows)
    return verdict(f"the chosen weight's held-out risk is at most 1.02 of that without: {worst:.3f}", worst <= 1.02)


def digits(seeds):
    x, digit = load_digits(return_X_y=True)
    level = np.arange(5)
    truth = 0.1 + 0.8 * (digit[:, None] <= 2 * level + 1)
    rows = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(x))
        first, train, test = order[:90], order[90:1200], order[1200:]
        teacher = LogisticRegression(max_iter=2000).fit(x[first] / 16, digit[first] // 2)
        logging = 0.8 * teacher.predict_proba(x / 16) + 0.2 / 5
        given = (rng.random(len(x))[:, None] > logging.cumsum(1)).sum(1).clip(max=4)
        got = rng.random(len(x)) < truth[np.arange(len(x)), given]
        obs = pd.DataFrame({"level": given, "response": got.astype(float)}, index=[str(i) for i in range(len(x))])
        data = anndata.AnnData(x / 16, obs=obs)
        for shape in ("plain", "monotone", "concave"):
            q = response(fitted(data[train].copy(), shape, seed), data[test]).to_numpy()
            row = {"model": shape, "seed": seed}
            rows.append(row | {f"regret closed, {b:g}": closed(truth[test], q, level, b) for b in (1.0, 2.0)})
        spent, value = (logging[test] * level).sum(1).mean(), (logging[test] * truth[test]).sum(1).mean()
        best = allocate(truth[test], level, spent * len(test)).value / len(test)
        share = (value - even(truth[test], spent)) / (best - even(truth[test], spent))
        rows.append({"model": f"logging (spends {spent:.2f})", "seed": seed, "regret closed, 2": share})
    table = pd.DataFrame(rows)
    table["model"] = table["model"].str.partition(" (")[0]
    means = table.groupby("model", sort=False).mean(numeric_only=True).drop(columns="seed")
    show(f"digits, means over {seeds} seeds", means.reset_index().to_dict("records"))
    ok = []
    for b in (1.0, 2.0):
        column = means[f"regret closed, {b:g}"]
        by = column["monotone"] - column["plain"]
        ok.append(verdict(f"digits, {b:g}: monotone above plain: {by:+.3f}", by > 0))
    logged = means.loc["logging", "regret closed, 2"]
    least = means.loc["plain", "regret closed, 2"]
    ok.append(verdict(f"digits: plain above logging (at what it spends): {least:.3f}, {logged:.3f}", least > logged))
    return all(ok)


def per_level(train, test):
    """Responses [N, K] by a logistic regression for each level, on the customers who were given it."""
    level, y, x = (np.asarray(v) for v in (train.data.obs["level"], train.data.obs["response"], train.data.X))
    found = []
    for k in range(len(train.cost)):
        model = LogisticRegression().fit(x[level == k], y[level == k])
        found.append(model.predict_proba(test.data.X)[:, 1])
    return np.stack(found, 1)


def from_the_log(train, test, seed, budget, translated):
    """A policy [N, K] learnt from the log alone, at the price where the training customers spend the budget."""
    obs, cost, k = train.data.obs, train.cost, len(train.cost)

    def index(data):
        return pd.RangeIndex(data.n_obs)

    logging, new = (Policy.read(w.logging, k, index(w.data)).top(k) for w in (train, test))
    level, low, high = obs["level"].to_numpy(), 0.0, 1.0
    for _ in range(8):
        price = (low + high) / 2
        gained = obs["response"].to_numpy() - price * cost[level]
        log = BanditLog.of(level, gained, obs["propensity"], k)
        objective = OffPolicyValue(cap=10.0, variance=0.5)
        if translated:
            objective = OffPolicyValue(translation=float(gained.mean()))
        settings = {"n_actions": k, "n_hidden": 64, "max_epochs": 20, "seed": seed, "progress": False}
        settings |= {"validation": 0.0, "early_stopping": None}
        fitted = fit("poxm", policy_data(train.data.X, logging, log), objective=objective, **settings)
        spent = policy_of(fitted, train.data.X, logging).total(cost).mean()
        low, high = (price, high) if spent > budget else (low, price)
    return policy_of(fitted, test.data.X, new).frame().to_numpy()


def baselines(seeds):
    rows = []
    for seed in range(seeds):
        train, test = coupon_sim(100 + seed, 2000), coupon_sim(10_000 + seed, 4000)
        q = per_level(train, test)
        row = {"model": "T-learner", "seed": seed, "RMSE": ((q - test.truth) ** 2).mean() ** 0.5}
        rows.append(row | {f"regret closed, {b:g}": closed(test.truth, q, test.cost, b) for b in BUDGETS})
        for name, translated in (("CRM", False), ("BanditNet", True)):
            row = {"model": name, "seed": seed}
            for b in BUDGETS:
                policy = from_the_log(train, test, seed, b, translated)
                spent, value = (policy * test.cost).sum(1).mean(), (policy * test.truth).sum(1).mean()
                best = allocate(test.truth, test.cost, spent * 4000).value / 4000
                row[f"regret closed, {b:g}"] = (value - even(test.truth, spent)) / (best - even(test.truth, spent))
                row[f"spent, {b:g}"] = spent
            rows.append(row)
            print(row, flush=True)
    means = pd.DataFrame(rows).groupby("model", sort=False).mean(numeric_only=True).drop(columns="seed")
    show(
        f"Other methods, means over {seeds} seeds (regret closed at what each spends)",
        means.reset_index().to_dict("records"),
    )
    return True


def held(draws, truth):
    """Share of the true responses in the 90 % intervals of draws, and the mean width."""
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return ((low <= truth) & (truth <= high)).mean(), (high - low).mean()


def overspent(policy, truth, cost, budget, seed, times=2000):
    """How often the true responses spend more than the budget."""
    rng = np.random.default_rng(seed)
    given = (rng.random(len(policy))[:, None] >= policy.cumsum(1)).sum(1).clip(max=len(cost) - 1)
    chance, paid = truth[np.arange(len(truth)), given], cost[given]
    return np.mean([(paid * (rng.random(len(paid)) < chance)).sum() > budget for _ in range(times)])


def intervals(seeds, members=20):
    rows, spending = [], []
    for seed in range(seeds):
        train, test = coupon_sim(100 + seed, 2000), coupon_sim(10_000 + seed, 1000)
        for shape in ("concave", "monotone"):
            fits = response_ensemble(train.data, members, seed=1000 * seed, shape=shape, batch_size=256, validation=0.2)
            draws = response_draws(fits, test.data, draws=400)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one fit is too narrow is what is shown
                one = response_draws(fitted(train.data, shape, seed), test.data, draws=400)
            row = {"seed": seed, "shape": shape}
            for name, found in (("ensemble", draws), ("one fit", one)):
                row |= dict(zip((f"{name} holds", f"{name} width"), held(found, test.truth), strict=True))
            rows.append(row)
            print(row, flush=True)
        budget, mean = 600.0, draws.mean(0)
        for name, options in (
            ("expected", {"redeemed": mean}),
            ("0.05, responses known", {"redeemed": mean, "overspend": 0.05}),
            ("0.05, responses in draws", {"redeemed": draws, "overspend": 0.05}),
        ):
            found = allocate(mean, test.cost, budget, **options)
            policy = found.policy.to_numpy()
            row = {"seed": seed, "spending within": name, "expected spending": found.diagnostics["spent"].iloc[0]}
            row |= {"value": (policy * test.truth).sum(), "true spending": (policy * test.cost * test.truth).sum()}
            spending.append(row | {"overspent": overspent(policy, test.truth, test.cost, budget, seed)})
    show("90 % intervals of the response", rows)
    show("Coupons that cost when they are used, a budget of 600 for 1,000 customers", spending)
    share = np.array([row["ensemble holds"] for row in rows])
    return verdict(
        f"the ensemble's hold 0.85 to 0.95 of the true responses: {share.round(3).tolist()}",
        ((share >= 0.85) & (share <= 0.95)).all(),
    )


PARTS = {"coupons": coupons, "weights": weights, "digits": digits, "baselines": baselines, "intervals": intervals}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    a = p.parse_args()
    torch.set_num_threads(1)
    return all([PARTS[part](a.seeds) for part in a.parts])


if __name__ == "__main__":
    raise SystemExit(not main())
