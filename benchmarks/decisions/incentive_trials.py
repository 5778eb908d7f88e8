"""Budgets spent by responses learnt on half of a randomised trial, and judged on the other half.

``thornton``: cash of 0 to 3 dollars for collecting a test result, 2,004 people of rural Malawi (Thornton 2008); half of
the villages for learning. The cash is paid only when the result is collected, so it costs its amount times the
response. ``hillstrom``: no e-mail, one on women's or one on men's clothes, 64,000 customers (MineThatData 2008);
response: a visit within two weeks; an e-mail costs 1 and the budget is a share of the customers.

Policies, all learnt on the first half: ours (`response_ensemble`, concave for cash and free for e-mails, and
`allocate`); ``even``: levels at random, of the two neighbouring ones that spend the budget; ``cheapest``: the
cheapest incentive at random; ``uplift``: two logistic regressions, with any incentive and without, and the dearer of
the levels of ``even`` to those of largest difference until the money is gone. On the second half, where levels were
given at random, value and spending are estimated by DR with our responses as its model; the difference to ours by the
same terms on the same people. Five splits; their mean has the mean of their standard errors, as the halves overlap.

    python -m benchmarks.decisions.incentive_trials [--trials thornton hillstrom] [--splits 5] [--members 20]
        [--plot FOLDER]

Data: thornton is embedded; incentives/hillstrom_email.parquet under FIELDGUIDE_DATA (reading it needs pyarrow). No
setting was chosen on these data, and no published number is of this protocol.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.common import show, verdict
from benchmarks.datasets import folder
from fieldguide.catalog import response_draws, response_ensemble
from fieldguide.catalog.data import thornton
from fieldguide.decisions import allocate, response_curve
from fieldguide.decisions.policies.estimators import DR, Feedback
from fieldguide.decisions.policies.intervals import interval, standard_error


@dataclass
class Trial:
    """People, the level given to each, what it costs, and how the response is modelled."""

    x: np.ndarray
    level: np.ndarray
    response: np.ndarray
    groups: np.ndarray
    cost: np.ndarray
    redeemed: bool
    budgets: tuple[float, ...]
    settings: dict


def read_thornton(small):
    people = thornton().dropna()
    edges = [-1, 0, 0.5, 1, 1.5, 2, 4]
    level = pd.cut(people["tinc"], edges, labels=False).to_numpy()
    cost = people.groupby(level)["tinc"].mean().to_numpy()
    settings = {"shape": "concave", "max_epochs": 10 if small else 60}
    x = people[["distvct", "age"]].to_numpy(dtype=np.float32)
    groups = people["villnum"].to_numpy()
    return Trial(x, level, people["got"].to_numpy(float), groups, cost, True, (0.25, 0.5, 1.0), settings)


def read_hillstrom(small):
    data = pd.read_parquet(folder("incentives/hillstrom_email.parquet"))
    data = data.sample(6000, random_state=0) if small else data
    level = data["treatment"].map({"No E-Mail": 0, "Womens E-Mail": 1, "Mens E-Mail": 2}).to_numpy()
    x = data[["recency", "mens", "womens", "newbie"]].assign(history=np.log(data["history"]))
    x = x.join(pd.get_dummies(data[["zip_code", "channel"]], dtype=float)).to_numpy(dtype=np.float32)
    settings = {"shape": "plain", "max_epochs": 2 if small else 15, "batch_size": 512}
    visits, each = data["visit"].to_numpy(float), np.arange(len(data))
    return Trial(x, level, visits, each, np.array([0.0, 1, 1]), False, (0.25, 0.5, 0.75), settings)


READERS = {"thornton": read_thornton, "hillstrom": read_hillstrom}


def halves(groups, seed):
    """Rows for learning and for judging; groups stay together."""
    names = np.unique(groups)
    first = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    inside = np.isin(groups, first)
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def to_random(share, level, count, k):
    """A level at random for a share of the people, else nothing."""
    policy = np.zeros((count, k))
    policy[:, level] = min(share, 1.0)
    policy[:, 0] += 1 - min(share, 1.0)
    return policy


def rivals(trial, learn, judge, budget):
    """Policies [n, K] of the other methods, by what the first half says."""
    k, n = len(trial.cost), len(judge)
    mean = np.array([trial.response[learn][trial.level[learn] == a].mean() for a in range(k)])
    spent = trial.cost * mean if trial.redeemed else trial.cost  # of a level that everybody gets
    order = [0, int(mean.argmax())]
    if trial.redeemed:
        order = [0, *(a for a in range(1, k) if spent[a] > spent[:a].max())]
    high = next((a for a in order if spent[a] > budget), order[-1])
    low = order[order.index(high) - 1]
    part = min((budget - spent[low]) / (spent[high] - spent[low]), 1.0)
    even = np.zeros((n, k))
    even[:, low], even[:, high] = 1 - part, part
    given = trial.level[learn] > 0
    scale = StandardScaler().fit(trial.x[learn])
    x, new = scale.transform(trial.x[learn]), scale.transform(trial.x[judge])
    with_it, without = (LogisticRegression(max_iter=1000).fit(x[m], trial.response[learn][m]) for m in (given, ~given))
    chance = with_it.predict_proba(new)[:, 1]
    uplift = chance - without.predict_proba(new)[:, 1]
    price = trial.cost[high] * (chance if trial.redeemed else np.ones(n))
    order = np.argsort(-uplift)
    chosen = order[(price[order].cumsum() <= budget * n) & (uplift[order] > 0)]
    picked = to_random(0, 0, n, k)
    picked[chosen, 0], picked[chosen, high] = 0, 1
    cheap = min(range(1, k), key=lambda a: trial.cost[a])
    return {"even": even, "cheapest": to_random(budget / spent[cheap], cheap, n, k), "uplift": picked}


def terms(policy, level, outcome, chance, q):
    """Terms of DR on the judging half, whose mean is the estimate."""
    at = np.arange(len(level))
    tensors = [torch.tensor(v) for v in (outcome[:, None], np.log(chance[level])[:, None], policy[at, level][:, None])]
    log = Feedback(tensors[0], tensors[1], tensors[2].log())
    log.predicted, log.direct = torch.tensor(q[at, level])[:, None], torch.tensor((policy * q).sum(1))
    return DR().terms(log)[0]


def split(trial, seed, members):
    """Rows of one split, and the draws of the responses of the people who judge."""
    learn, judge = halves(trial.groups, seed)
    obs = pd.DataFrame({"level": trial.level, "response": trial.response}, index=[f"p{i}" for i in range(len(trial.x))])
    data = anndata.AnnData(trial.x, obs=obs)
    fits = response_ensemble(data[learn].copy(), members, seed=100 * seed, validation=0.2, **trial.settings)
    draws = response_draws(fits, data[judge].copy(), draws=10 * members, seed=seed)
    q, level, n = draws.mean(0), trial.level[judge], len(judge)
    chance = np.bincount(trial.level, minlength=len(trial.cost)) / len(trial.level)
    payment = trial.cost[level] * (trial.response[judge] if trial.redeemed else 1)
    paid = trial.cost * (q if trial.redeemed else np.ones_like(q))
    rows = []
    for budget in trial.budgets:
        options = {"redeemed": q} if trial.redeemed else {}
        policies = {"ours": allocate(q, trial.cost, budget * n, **options).policy.to_numpy()}
        policies |= rivals(trial, learn, judge, budget)
        policies |= {"nothing": to_random(0, 0, n, len(trial.cost))}
        value = {name: terms(p, level, trial.response[judge], chance, q) for name, p in policies.items()}
        for name, policy in policies.items():
            spent, ahead = terms(policy, level, payment, chance, paid), value["ours"] - value[name]
            low, high = interval(value[name], seed=seed)
            row = {"split": seed, "budget": budget, "policy": name, "value": float(value[name].mean())}
            row |= {"low": low, "high": high, "spent": float(spent.mean()), "spent se": standard_error(spent)}
            rows.append(row | {"ours ahead": float(ahead.mean()), "ahead se": standard_error(ahead)})
    rates = np.array(
        [
            [v.mean(), v.std() / len(v) ** 0.5]
            for v in (trial.response[judge][level == a] for a in range(len(trial.cost)))
        ]
    )
    return rows, draws, rates


def run(name, trial, splits, members, plot):
    rows, ok, off = [], [], []
    for seed in range(splits):
        found, draws, rates = split(trial, seed, members)
        rows += found
        curve = response_curve(draws, trial.cost)
        sd = draws.mean(1).std(0)
        off.append(np.abs(curve.table["response"] - rates[:, 0]) / np.hypot(sd, rates[:, 1]))
        if seed == 0:
            shown = curve.table.assign(observed=rates[:, 0], observed_se=rates[:, 1]).reset_index()
            show(
                f"{name}: response of those who judge (split 0), 90 % band, and what the trial has",
                shown.to_dict("records"),
            )
            if trial.settings["shape"] != "plain":
                rises = (np.diff(draws, axis=2) >= -1e-9).all()
                ok.append(
                    verdict(f"{name}: every draw rises with the level for each of {draws.shape[1]} people", rises)
                )
            if plot is not None:
                figure = curve.plot()
                figure.axes[0].errorbar(trial.cost, rates[:, 0], 1.96 * rates[:, 1], fmt="s", color="C3")
                figure.savefig(plot / f"{name}_curve.png")
    table = pd.DataFrame(rows)
    first = table[table["split"] == 0].drop(columns="split")
    show(f"{name}: split 0, for each person, 95 % intervals", first.to_dict("records"))
    means = (
        table.groupby(["budget", "policy"], sort=False).mean(numeric_only=True).drop(columns=["split", "low", "high"])
    )
    show(f"{name}: means over {splits} splits", means.reset_index().to_dict("records"))
    for budget in trial.budgets:
        mine = means.loc[budget, "ours"]
        over = (mine["spent"] - budget) / max(mine["spent se"], 1e-12)
        text = f"{name}, {budget:g}: spending at most 2 se above the budget: {mine['spent']:.3f}, {over:+.2f} se"
        ok.append(verdict(text, over <= 2))
        for rival in ("even", "cheapest", "uplift"):
            ahead, se = means.loc[(budget, rival), ["ours ahead", "ahead se"]]
            ok.append(
                verdict(f"{name}, {budget:g}: not behind {rival} by 2 se: {ahead:+.4f}, se {se:.4f}", ahead > -2 * se)
            )
    z = np.sort(np.ravel(off))
    text = f"{name}: mean responses within 3 joint se of the trial's in nine of ten levels: {z[-4:].round(1).tolist()}"
    ok.append(verdict(f"{text} at most", (z <= 3).mean() >= 0.9))
    return all(ok)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--trials", nargs="+", default=list(READERS), choices=list(READERS))
    p.add_argument("--splits", type=int, default=5)
    p.add_argument("--members", type=int, default=20)
    p.add_argument("--small", action="store_true", help="few epochs and customers: does it run?")
    p.add_argument("--plot", type=Path, help="folder for the response curves")
    a = p.parse_args()
    torch.set_num_threads(1)
    return all([run(name, READERS[name](a.small), a.splits, a.members, a.plot) for name in a.trials])


if __name__ == "__main__":
    raise SystemExit(not main())
