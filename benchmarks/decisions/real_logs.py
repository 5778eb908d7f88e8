"""Two policies of a real shop find each other's click rate (Open Bandit), and obp gives the same numbers.

Items of a fashion shop were shown at random and by Bernoulli Thompson sampling (BTS) side by side, 10,000
impressions each, 80 items at three positions, 38 and 42 clicks. From the random log the value of BTS (its share of
each item at each position) is estimated, and from the BTS log that of the uniform policy; the intervals should hold
the click rate that the other log has. So few clicks do not rank estimators: this checks intervals and agreement.

obp (Open Bandit Pipeline 0.5.5) computes the same estimates from the same rows, policies and predicted rewards. It
also makes its documented example of digits, of which both sides read the rows. Its documentation has a true value of
0.8656 and 0.8663 by inverse propensity weighting; with the classifier and the sampler of today's versions it draws
other actions, and finds other numbers itself (shown). So the target is its own number on the same rows, within 0.01;
and over 500 logs drawn anew from the same policy the mean estimate is the true value.

    python -m benchmarks.decisions.real_logs

obp runs in an environment of its own, named by FIELDGUIDE_OBP_PYTHON (see benchmarks/README.md); without it the
formulas are written once more here, with NumPy. Categories of items: bandit_obd/all_item_context.csv under
FIELDGUIDE_DATA. Nothing is tuned.
"""

import argparse
import json
import os
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import show, verdict
from benchmarks.datasets import folder
from fieldguide.catalog.data import open_bandit
from fieldguide.decisions import BanditLog, evaluate_policy, predict_rewards
from fieldguide.decisions.policies.estimators import ESTIMATORS, IPS, Feedback, ShrinkageDR, SwitchDR
from fieldguide.decisions.policies.estimators import value as estimate

CAP, SWITCH, SHRINK = 10.0, 10.0, 100.0
OURS = {
    **{name: ESTIMATORS[name] for name in ("ips", "clipped", "snips", "translated", "mips", "dm", "dr")},
    "switch_dr": SwitchDR(threshold=SWITCH),
    "shrinkage_dr": ShrinkageDR(strength=SHRINK),
}
UNBIASED = ("ips", "snips", "translated", "dr")
DIGITS = {"value": 0.8656, "ipw": 0.8663}
OBP = """
import json, sys, warnings, numpy as np
warnings.simplefilter("ignore")
import obp.ope as ope
d = dict(np.load(sys.argv[1]))
same = {k: d[k] for k in ("reward", "action", "position")}
known = same | {"pscore": d["pscore"], "action_dist": d["policy"]}
q = {"estimated_rewards_by_reg_model": d["model"]}
value = {
    "ips": ope.InverseProbabilityWeighting().estimate_policy_value(**known),
    "clipped": ope.InverseProbabilityWeighting(lambda_=float(d["cap"])).estimate_policy_value(**known),
    "snips": ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**known),
    "dm": ope.DirectMethod().estimate_policy_value(action_dist=d["policy"], position=d["position"], **q),
    "dr": ope.DoublyRobust().estimate_policy_value(**known, **q),
    "switch_dr": ope.SwitchDoublyRobust(lambda_=float(d["switch"])).estimate_policy_value(**known, **q),
    "shrinkage_dr": ope.DoublyRobustWithShrinkage(lambda_=float(d["shrink"])).estimate_policy_value(**known, **q),
}
if "logging" in d:
    mips = ope.MarginalizedInverseProbabilityWeighting(n_actions=d["policy"].shape[1])
    value["mips"] = mips.estimate_policy_value(
        **same, action_embed=d["embedding"], pi_b=d["logging"], action_dist=d["policy"], p_e_a=d["chance"]
    )
print(json.dumps({k: float(v) for k, v in value.items()}))
"""
EXAMPLE = """
import sys, warnings, numpy as np
warnings.simplefilter("ignore")
from obp.dataset import MultiClassToBanditReduction
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
x, y = load_digits(return_X_y=True)
data = MultiClassToBanditReduction(
    X=x, y=y, base_classifier_b=LogisticRegression(random_state=12345), alpha_b=0.8, dataset_name="digits"
)
data.split_train_eval(eval_size=0.7, random_state=12345)
log = data.obtain_batch_bandit_feedback(random_state=12345)
policy = data.obtain_action_dist_by_eval_policy(
    base_classifier_e=LogisticRegression(C=100, random_state=12345), alpha_e=0.9
)
truth = data.calc_ground_truth_policy_value(action_dist=policy)
known = {k: log[k] for k in ("action", "reward", "pscore")}
np.savez(sys.argv[1], truth=truth, policy=policy, logging=log["pi_b"][:, :, 0], label=data.y_ev, **known)
"""


def call(code, *arguments):
    """Run a script in the environment of obp and return what it prints."""
    done = subprocess.run([os.environ["FIELDGUIDE_OBP_PYTHON"], "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"obp failed:\n{done.stderr[-2000:]}")
    return done.stdout


def peer(rows):
    """Estimates by obp, or by the formulas written once more where it is not at hand."""
    if "FIELDGUIDE_OBP_PYTHON" not in os.environ:
        return formulas(**rows)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.npz"
        np.savez(path, cap=CAP, switch=SWITCH, shrink=SHRINK, **rows)
        return json.loads(call(OBP, str(path)).splitlines()[-1])


def formulas(reward, action, position, pscore, policy, model, logging=None, embedding=None, chance=None):
    """The estimators in NumPy, from the definitions in the papers."""
    at = np.arange(len(reward))
    pi, q = policy[at, :, position], model[at, :, position]
    w, residual = pi[at, action] / pscore, reward - q[at, action]
    direct = np.einsum("nk,nk->n", pi, q)
    found = {
        "ips": np.average(w * reward),
        "clipped": np.average(np.where(w < CAP, w, CAP) * reward),
        "snips": np.average(reward, weights=w),
        "dm": direct.mean(),
        "dr": (direct + w * residual).mean(),
        "switch_dr": (direct + w * (w <= SWITCH) * residual).mean(),
        "shrinkage_dr": (direct + SHRINK * w / (w**2 + SHRINK) * residual).mean(),
    }
    if logging is not None:
        shown = chance[:, embedding[:, 0], 0].T
        among = [np.einsum("nk,nk->n", p, shown) for p in (pi, logging[at, :, position])]
        found["mips"] = np.average(among[0] / among[1] * reward)
    return found


def shares(data):
    """Share of each item at each position [3, 80]."""
    counts = pd.crosstab(data["position"], data["item_id"]).reindex(columns=range(80), fill_value=0)
    return counts.div(counts.sum(1), axis=0).to_numpy()


def both_ways(resamples):
    """Rows of the tables, and whether the targets are met."""
    random, bts = open_bandit("random"), open_bandit("bts")
    items = pd.read_csv(folder("bandit_obd/all_item_context.csv"), index_col="item_id")
    category = pd.factorize(items["item_feature_1"].loc[range(80)])[0]
    uniform, theirs = np.full((3, 80), 1 / 80), shares(bts)
    rows, same, ok = [], [], []
    for name, data, target, of, other in (
        ("random to BTS", random, theirs, uniform, bts),
        ("BTS to random", bts, uniform, None, random),
    ):
        place = data["position"].to_numpy() - 1
        log = BanditLog.read(data, "item_id", "click", "propensity_score", actions=range(80))
        q = predict_rewards(log, np.eye(3)[place]).to_numpy()
        rate = other["click"].mean()
        extra = {} if of is None else {"logging": of[place], "embedding": category}
        chosen = {n: e for n, e in OURS.items() if of is not None or n != "mips"}
        arguments = {"estimators": chosen, "reward_model": q, **extra}
        found = {}
        for method in ("bootstrap", "normal", "bernstein"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # BTS hardly ever shows some items: the diagnostics are in the table
                found[method] = evaluate_policy(log, target[place], interval=method, resamples=resamples, **arguments)
        value, weights = found["bootstrap"].table, found["bootstrap"].diagnostics
        for e in chosen:
            ends = {m: f.table.loc[e, ["low", "high"]] for m, f in found.items()}
            held = [low <= rate <= high for low, high in ends.values()]
            row = {"log": name, "estimator": e, "on policy": rate, "value": value.loc[e, "value"]}
            row |= {"se": value.loc[e, "se"], "ess": weights.loc[e, "ess"], "max weight": weights.loc[e, "max_weight"]}
            rows.append(row | {m: f"{low:.5f} to {high:.5f}" for m, (low, high) in ends.items()})
            if e in UNBIASED:
                ok += held
                rows[-1]["held"] = f"{sum(held)} of 3"
        given = {"reward": log.reward[:, 0], "action": log.action[:, 0], "position": place}
        given |= {"pscore": log.propensity[:, 0], "policy": np.repeat(target[place][:, :, None], 3, 2)}
        given["model"] = np.repeat(q[:, :, None], 3, 2)
        if of is not None:
            given["logging"] = np.repeat(of[place][:, :, None], 3, 2)
            given |= {"embedding": category[log.action], "chance": np.eye(category.max() + 1)[category][:, :, None]}
        theirs_too = peer(given)
        same += [(name, e, value.loc[e, "value"], v) for e, v in theirs_too.items()]
    show("Open Bandit, campaign 'all': the other policy's click rate", rows)
    return same, ok


def digits(same):
    """The documented example of obp: its rows, its numbers, ours."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "digits.npz"
        call(EXAMPLE, str(path))
        made = dict(np.load(path))
    log = BanditLog.of(made["action"], made["reward"], made["pscore"], made["policy"].shape[1])
    found = evaluate_policy(log, made["policy"][:, :, 0], estimators=["ips", "snips"]).table
    rows = {"reward": made["reward"].astype(float), "action": made["action"], "pscore": made["pscore"]}
    rows |= {"position": np.zeros(len(log), int), "policy": made["policy"], "model": np.zeros_like(made["policy"])}
    theirs = peer(rows)
    same += [("digits", e, found.loc[e, "value"], theirs[e]) for e in ("ips", "snips")]
    ours, truth = found.loc["ips", "value"], float(made["truth"])
    rng, rho, at = np.random.default_rng(0), made["logging"], np.arange(len(log))
    again = []
    for _ in range(500):
        drawn = (rng.random(len(rho))[:, None] > rho.cumsum(1)).sum(1).clip(max=rho.shape[1] - 1)
        fresh = BanditLog.of(drawn, drawn == made["label"], rho[at, drawn], rho.shape[1])
        feedback = Feedback(*(torch.tensor(v) for v in (fresh.reward, np.log(fresh.propensity))), target(made, drawn))
        again.append(estimate(IPS(), feedback))
    mean, se = np.mean(again), np.std(again) / len(again) ** 0.5
    table = [{"": "true value", "documented": DIGITS["value"], "obp here": truth}]
    table.append({"": "IPS", "documented": DIGITS["ipw"], "obp here": theirs["ips"], "ours": ours})
    table.append({"": "IPS, mean of 500 logs", "ours": mean, "se": se})
    show("Digits as in obp's documentation", table)
    gap = abs(ours - theirs["ips"])
    return [
        verdict(f"digits: IPS within 0.01 of obp's {theirs['ips']:.4f} on the same rows: {gap:.1e} apart", gap <= 0.01),
        verdict(
            f"digits: mean over logs is the true value: {(mean - truth) / se:+.2f} se", abs(mean - truth) <= 3 * se
        ),
    ]


def target(made, action):
    """Log probability of actions under the policy that is evaluated."""
    return torch.tensor(np.log(made["policy"][np.arange(len(action)), action, 0]))[:, None]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    a = p.parse_args()
    whose = "obp" if "FIELDGUIDE_OBP_PYTHON" in os.environ else "the formulas in NumPy"
    same, held = both_ways(a.resamples)
    ok = [verdict(f"intervals hold the other policy's rate: {sum(held)} of {len(held)}", all(held))]
    if whose == "obp":
        ok += digits(same)
    else:
        print("\nFIELDGUIDE_OBP_PYTHON is not set: obp is left out, and its example of digits")
    show(
        f"The same estimates by {whose}",
        [{"log": n, "estimator": e, "ours": o, whose: t, "difference": o - t} for n, e, o, t in same],
    )
    worst = max(abs(o - t) for _, _, o, t in same)
    ok.append(verdict(f"estimates equal those of {whose} to 1e-12: {worst:.1e}", worst <= 1e-12))
    return all(ok)


if __name__ == "__main__":
    raise SystemExit(not main())
