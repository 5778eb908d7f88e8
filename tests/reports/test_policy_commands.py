"""The commands for policies and budgets: from CSV files to tables and reports, and errors in one line."""

import re

import numpy as np
import pandas as pd
import pytest

from fieldguide.catalog.data.extreme import action_probabilities, draw_log, logging_policy, xmc_sim
from fieldguide.cli import main


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A log of two actions, a policy, and a folder to write to."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    action = rng.integers(2, size=400)
    log = pd.DataFrame({"arm": action, "won": (rng.random(400) < 0.2 + 0.4 * action).astype(int), "p": 0.5})
    log.rename_axis("user").to_csv("log.csv")
    pd.DataFrame({"0": [0.1], "1": [0.9]}).to_csv("policy.csv")
    pd.DataFrame({"0": [0.5], "1": [0.5]}).to_csv("logging.csv")
    return tmp_path


COLUMNS = ["--action", "arm", "--reward", "won", "--propensity", "p"]


def test_evaluate_writes_a_table_and_a_report(shop, capsys):
    extra = ["--logging", "logging.csv", "--top", "1", "--output", "found.csv", "--report", "found.html"]
    assert main(["policy", "evaluate", "log.csv", "policy.csv", *COLUMNS, *extra]) == 0
    table = pd.read_csv("found.csv", index_col=0)
    assert table.loc["ips", "value"] == pytest.approx(0.56, abs=0.06) and "sis" in table.index
    page = (shop / "found.html").read_text(encoding="utf-8")
    assert "Value of a policy" in page and "data:image/svg+xml;base64" in page and "Largest weight." in page
    shown = [c for c in pd.read_csv("found.csv", index_col=0).columns if f">{c}<" in page]
    assert shown == ["value", "se", "low", "high", "over_logging"]
    assert "ips" in capsys.readouterr().out


def test_allocate(shop, capsys):
    names = ["none", "one", "two"]
    reward = pd.DataFrame([[0.1, 0.3, 0.35], [0.2, 0.25, 0.6], [0.0, 0.4, 0.5]], columns=names, index=["a", "b", "c"])
    reward.to_csv("reward.csv")
    pd.DataFrame([[0, 1, 2]], columns=names).to_csv("cost.csv")
    assert main(["allocate", "reward.csv", "cost.csv", "3.5", "--report", "budget.html"]) == 0
    allocation = pd.read_csv("allocation.csv", index_col=0, keep_default_na=False)
    assert allocation.loc["b", "option"] == "two" and allocation["cost"].sum() == pytest.approx(3.5)
    assert "value 1.2, spent 3.5 of 3.5" in capsys.readouterr().out
    assert "What no policy within the budget can exceed." in (shop / "budget.html").read_text(encoding="utf-8")
    assert main(["allocate", "reward.csv", "cost.csv", "3.5", "--integer"]) == 0
    said = capsys.readouterr().out
    assert "value 1.1" in said and "nan" not in said and "another unit" not in said


def test_allocate_coupons_that_cost_when_they_are_redeemed(shop, capsys):
    rng = np.random.default_rng(0)
    names, people = ["none", "one"], [f"p{i}" for i in range(60)]
    chance = np.sort(rng.random((60, 2)), 1)
    reward = pd.DataFrame(chance, columns=names, index=people)
    reward.to_csv("reward.csv")
    reward.sample(frac=1, random_state=0)[names[::-1]].to_csv("redeemed.csv")  # found by name
    pd.DataFrame([[0, 1]], columns=names).to_csv("cost.csv")
    np.save("draws.npy", (chance + rng.normal(0, 0.05, (200, 60, 2))).clip(0, 1))
    words = ["allocate", "reward.csv", "cost.csv", "15", "--redeemed", "redeemed.csv"]
    assert main([*words, "--overspend", "0.1", "--draws", "draws.npy", "--report", "budget.html"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Spending within 1" in said and "at probability 0.9." in said and "Over draws, 90 %: value" in said
    low, high = map(float, re.search(r"90 %: .*, spent ([\d.]+) to ([\d.]+)\.", said).groups())
    assert low < 15 and high <= 16
    page = (shop / "budget.html").read_text(encoding="utf-8")
    assert "spending_bound" in page and "stays within" in page
    assert main([*words, "--draws", "nothing.npy"]) == 1
    assert "no file nothing.npy" in capsys.readouterr().err
    (shop / "text.npy").write_text("abc")
    assert main([*words, "--draws", "text.npy"]) == 1
    assert "cannot be read as an array" in capsys.readouterr().err
    assert main(["allocate", "reward.csv", "cost.csv", "15", "--overspend", "0.1"]) == 2
    assert "overspend needs redeemed" in capsys.readouterr().err


def test_evaluate_by_categories(shop, capsys):
    pd.DataFrame({"kind": ["plain", "plain"]}, index=[0, 1]).to_csv("kinds.csv")
    words = ["policy", "evaluate", "log.csv", "policy.csv", *COLUMNS, "--logging", "logging.csv"]
    assert main([*words, "--embedding", "kinds.csv", "--output", "found.csv"]) == 0
    table = pd.read_csv("found.csv", index_col=0)
    assert table.loc["mips", "value"] == pytest.approx(table.loc["logging", "value"])  # one kind: the log's own mean
    capsys.readouterr()


def test_learn(shop, capsys):
    world = xmc_sim(0, n_actions=20, n_groups=4, n=400, n_latent=4, n_features=6)
    rho = action_probabilities(logging_policy(world.context[:100], world.relevant[:100], 0, epochs=5), world.context)
    log = draw_log(rho, world.reward, seed=1, length=1)
    rows = [f"r{i}" for i in range(400)]
    table = pd.DataFrame({"action": log.action[:, 0], "reward": log.reward[:, 0], "propensity": log.propensity[:, 0]})
    table.set_axis(rows).to_csv("log.csv")
    pd.DataFrame(world.context, index=rows).to_csv("context.csv")
    pd.DataFrame(rho, index=rows).to_csv("logging.csv")
    words = ["policy", "learn", "log.csv", "context.csv", "logging.csv", "--top", "4", "--max-epochs", "2"]
    assert main([*words, "--report", "learned.html"]) == 0
    policy = pd.read_csv("learned_policy.csv", index_col=0)
    assert policy.shape == (400, 20) and policy.sum(axis=1).to_numpy() == pytest.approx(np.ones(400))
    assert ((policy > 0).sum(axis=1) == 4).all()
    assert "p = 4 actions; evaluated on 80 rows" in capsys.readouterr().out and (shop / "learned.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["policy"], "fieldguide policy takes evaluate or learn"),
        (["policy", "evaluate", "nothing.csv", "policy.csv"], "no file nothing.csv"),
        (["policy", "evaluate", "log.csv", "policy.csv"], "no column 'action'; there are arm, won, p"),
        (["policy", "evaluate", "log.csv", "policy.csv", *COLUMNS, "--top", "1"], "top needs logging"),
        (["policy", "evaluate", "log.csv", "policy.csv", *COLUMNS, "--output", "no/where.csv"], "there is no folder"),
        (["allocate", "policy.csv", "logging.csv", "0.1"], "infeasible: the cheapest options cost 0.5"),
    ],
    ids=["policy", "file", "column", "top", "output", "budget"],
)
def test_errors_are_one_line(shop, words, message, capsys):
    assert main(words) == (2 if words == ["policy"] else 1)
    said = capsys.readouterr().err.strip()
    assert message in said and said.count("\n") == 0
