"""Tables of the command line: whose first column is names and whose is not, and files that are no CSV."""

import numpy as np
import pandas as pd
import pytest

from fieldguide import tables
from fieldguide.cli import main

NAMES = ["none", "one", "two"]
REWARD = pd.DataFrame([[0.1, 0.3, 0.35], [0.2, 0.25, 0.6], [0.0, 0.4, 0.5]], columns=NAMES, index=["007", "b", "c"])
COST = pd.DataFrame([[0, 1, 2]], columns=NAMES)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys, words) -> str:
    assert main(words.split()) == 1
    said = capsys.readouterr().err
    assert said.startswith("fieldguide: error: ") and said.count("\n") == 1, said
    return said


def allocation(words: str) -> pd.DataFrame:
    assert main(f"allocate {words}".split()) == 0
    return pd.read_csv("allocation.csv", index_col=0, keep_default_na=False, dtype={0: str})


def test_a_table_without_names_does_not_lose_its_first_option(capsys):
    REWARD.to_csv("reward.csv", index=False)
    COST.to_csv("cost.csv", index=False)
    said = fails(capsys, "allocate reward.csv cost.csv 3.5")
    assert "first column of reward.csv, 'none', is one of the options" in said and "--id COLUMN" in said
    REWARD.rename_axis("customer").to_csv("reward.csv")
    found = allocation("reward.csv cost.csv 3.5")  # one row of costs for all needs no name
    assert found.loc["b", "option"] == "two" and found.index[0] == "007"
    COST.iloc[[0, 0, 0]].to_csv("cost.csv", index=False)
    assert "first column of cost.csv" in fails(capsys, "allocate reward.csv cost.csv 3.5")


def test_the_column_of_names_can_stand_anywhere(capsys):
    REWARD.to_csv("reward.csv")
    COST.to_csv("cost.csv")
    wanted = allocation("reward.csv cost.csv 3.5")
    moved = REWARD.assign(user=["u1", "u2", "u3"])
    moved.to_csv("moved.csv", index=False)
    COST.to_csv("cost.csv", index=False)
    found = allocation("moved.csv cost.csv 3.5 --id user")
    assert list(found.index) == ["u1", "u2", "u3"] and list(found["option"]) == list(wanted["option"])
    assert "moved.csv has no column 'usr' for --id; there are none, one, two, user" in fails(
        capsys, "allocate moved.csv cost.csv 3.5 --id usr"
    )
    moved.assign(user=["u1", None, "u3"]).to_csv("moved.csv", index=False)
    assert "moved.csv: row 2 has no name" in fails(capsys, "allocate moved.csv cost.csv 3.5 --id user")


def test_what_is_no_number_is_named(capsys):
    COST.to_csv("cost.csv")
    REWARD.astype(str).replace("0.25", "much").to_csv("reward.csv")
    assert "reward.csv: column 'one' of row 'b' is 'much', not a number" in fails(
        capsys, "allocate reward.csv cost.csv 3"
    )
    REWARD.replace(0.25, np.nan).to_csv("reward.csv")
    assert "reward.csv: column 'one' of row 'b' is missing" in fails(capsys, "allocate reward.csv cost.csv 3")
    REWARD.to_csv("reward.csv")
    np.save("draws.npy", np.zeros((5, 2, 3)))
    said = fails(capsys, "allocate reward.csv cost.csv 3 --draws draws.npy")
    assert "draws.npy has shape (5, 2, 3): it must be draws x 3 x 3" in said


@pytest.mark.parametrize("content", [b"", bytes(range(256)), b"a,b\n1,2\n3,4,5,6\n", b"a\n1\n"])
def test_files_that_are_no_table_are_named(content, here, capsys):
    (here / "odd.csv").write_bytes(content)
    COST.to_csv("cost.csv")
    assert "odd.csv" in fails(capsys, "allocate odd.csv cost.csv 3")
    assert "a folder" in fails(capsys, f"allocate odd.csv cost.csv 3 --output {here}")
    for mark, called in ((";", "semicolons"), ("\t", "tabs")):
        REWARD.to_csv("odd.csv", sep=mark)
        assert f"odd.csv is separated by {called}" in fails(capsys, "allocate odd.csv cost.csv 3")
    (here / "folder.csv").mkdir()
    assert "folder.csv is no file" in fails(capsys, "allocate folder.csv cost.csv 3")


@pytest.fixture
def shop():
    """A log of two actions with text that pandas takes for missing, and a policy for each row."""
    rng = np.random.default_rng(0)
    taken = rng.integers(2, size=200)
    rows = [f"u{i}" for i in range(200)]
    log = pd.DataFrame({"action": np.array(["None", "1"])[taken], "reward": taken * 1.0, "propensity": 0.5}, index=rows)
    chances = pd.DataFrame({"None": 0.1, "1": 0.9}, index=rows)
    return log, chances


def test_policies_are_found_by_the_names_of_rows(shop, capsys):
    log, chances = shop
    log.to_csv("log.csv")
    chances.sample(frac=1, random_state=0).to_csv("policy.csv")
    assert main("policy evaluate log.csv policy.csv".split()) == 0
    value = pd.read_csv("policy_value.csv", index_col=0).loc["ips", "value"]
    assert value == pytest.approx(0.9, abs=0.15)
    chances.to_csv("bare.csv", index=False)
    assert "first column of bare.csv, 'None', is one of" in fails(capsys, "policy evaluate log.csv bare.csv")
    assert "first column of bare.csv" in fails(capsys, "policy evaluate log.csv policy.csv --logging bare.csv")
    assert "first column of bare.csv" in fails(capsys, "policy learn log.csv policy.csv bare.csv")
    log.to_csv("bare_log.csv", index=False)
    assert "rows of bare_log.csv have no names" in fails(capsys, "policy evaluate bare_log.csv policy.csv")
    assert "rows of bare_log.csv have no names" in fails(capsys, "policy learn bare_log.csv policy.csv policy.csv")
    chances.iloc[:1].to_csv("one.csv", index=False)  # one row for all: no name is needed anywhere
    assert main("policy evaluate bare_log.csv one.csv".split()) == 0
    assert pd.read_csv("policy_value.csv", index_col=0).loc["ips", "value"] == value


def test_actions_are_one_however_they_are_written(shop):
    log, chances = shop
    for number, spelled in enumerate(["0", "0.0"]):
        log.replace({"action": {"None": spelled, "1": spelled.replace("0", "1", 1)}}).to_csv("log.csv")
        chances.set_axis(["0", "1"], axis=1).to_csv("policy.csv")
        assert main("policy evaluate log.csv policy.csv".split()) == 0, number


def test_learning_is_checked_before_it_begins(shop, capsys, monkeypatch):
    log, chances = shop
    rng = np.random.default_rng(1)
    context = pd.DataFrame(rng.normal(size=(200, 2)), index=log.index, columns=["age", "size"])
    log.to_csv("log.csv")
    context.to_csv("context.csv")
    pd.DataFrame({"None": [0.5], "1": [0.5]}).to_csv("one.csv", index=False)
    words = "policy learn log.csv context.csv one.csv --top 2 --max-epochs 1"
    assert main(words.split()) == 0  # one row for all contexts
    assert pd.read_csv("learned_policy.csv", index_col=0).shape == (200, 2)
    monkeypatch.setattr("fieldguide.catalog.learn_policy", lambda *a, **k: pytest.fail("refused only after training"))
    context.iloc[1:].to_csv("context.csv")
    assert "context.csv has no row 'u0'" in fails(capsys, words)
    context.iloc[[0, *range(200)]].to_csv("context.csv")
    assert "context.csv has several rows 'u0'" in fails(capsys, words)
    context.assign(size=["tall" if n == 3 else "1.5" for n in range(200)]).to_csv("context.csv")
    assert "context.csv: column 'size' of row 'u3' is 'tall'" in fails(capsys, words)
    context.to_csv("context.csv")
    log.assign(reward="much").to_csv("log.csv")
    assert "log.csv: column 'reward' of row 'u0' is 'much', not a number" in fails(capsys, words)


@pytest.mark.parametrize("ending", ["parquet", "feather"])
def test_parquet_and_feather_are_the_same_tables(ending, here):
    pytest.importorskip("pyarrow")
    REWARD.to_csv("reward.csv")
    COST.to_csv("cost.csv")
    wanted = allocation("reward.csv cost.csv 3.5")
    if ending == "parquet":
        REWARD.to_parquet("reward.parquet")
        COST.to_parquet("cost.parquet")
    else:
        REWARD.reset_index(names="customer").to_feather("reward.feather")
        COST.to_feather("cost.feather")
    assert main(f"allocate reward.{ending} cost.{ending} 3.5 --output out.{ending}".split()) == 0
    found = tables.with_names(tables.read_table(here / f"out.{ending}"))
    assert list(found.index) == list(wanted.index) and list(found["option"]) == list(wanted["option"])
    np.testing.assert_array_equal(found["cost"], wanted["cost"])


def test_a_missing_pyarrow_is_said_before_the_work(capsys, monkeypatch):
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    REWARD.to_csv("reward.csv")
    COST.to_csv("cost.csv")
    said = fails(capsys, "allocate reward.csv cost.csv 3.5 --output out.parquet")
    assert "pip install 'fieldguide[tables]'" in said
    assert "need pyarrow" in fails(capsys, "allocate reward.feather cost.csv 3.5")


def test_packed_csv(here):
    REWARD.to_csv("reward.csv.gz")
    COST.to_csv("cost.csv")
    assert main("allocate reward.csv.gz cost.csv 3.5 --output out.csv.gz".split()) == 0
    assert len(pd.read_csv("out.csv.gz", index_col=0)) == 3


def test_missing_values_are_shown_in_the_terminal(capsys):
    tables.show_table(
        pd.DataFrame({"gene": ["[bold]a", None], "fdr": [0.1, np.nan], "kind": pd.array([1, None], "Int64")})
    )
    shown = capsys.readouterr().out
    assert "[bold]a" in shown and shown.count("nan") == 3


def test_a_column_of_names_may_have_one_heading_in_every_file(tmp_path, capsys, monkeypatch):
    """Of both files: an id, or words. Numbers under one heading in both may be an option, and are refused."""
    monkeypatch.chdir(tmp_path)
    reward = pd.DataFrame([[0.0, 1.0, 2.0], [0.0, 2.0, 3.0]], columns=["0", "1", "2"])
    cost = pd.DataFrame([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], columns=["0", "1", "2"])
    for heading, names in (("customer", [17, 4]), ("id", ["a", "b"]), ("whose", ["a", "b"])):
        for name, table in (("r.csv", reward), ("c.csv", cost)):
            table.set_axis(names, axis=0).to_csv(tmp_path / name, index_label=heading)
        assert main(["allocate", "r.csv", "c.csv", "2", "--output", "out.csv"]) == 0
        assert pd.read_csv(tmp_path / "out.csv", index_col=0).index.tolist() == names
    for name, table in (("r.csv", reward), ("c.csv", cost)):
        table.to_csv(tmp_path / name, index=False)
    assert main(["allocate", "r.csv", "c.csv", "2"]) == 1
    assert "one of the options" in capsys.readouterr().err


def test_files_that_are_no_csv_by_their_first_line(capsys):
    COST.to_csv("cost.csv", index=False)
    for content, said in (
        ("id;none;one;two\nu0;0,5;1,5;2,5\nu1;0,1;2,5;3,5\n", "is separated by semicolons"),
        ("# by hand\nid,none,one,two\nu0,0.1,0.2,0.3\n", "begins with a comment: its first line must be the headings"),
        ("# by hand, today\nid,none,one,two\nu0,0.1,0.2,0.3\n", "begins with a comment"),
        ("id,none\nu0,0.1,0.2,0.3\n", "its rows have more columns than its first line has headings"),
    ):
        with open("reward.csv", "w") as file:
            file.write(content)
        assert said in fails(capsys, "allocate reward.csv cost.csv 3.5")


def test_a_parquet_file_with_names_of_several_levels(capsys):
    pytest.importorskip("pyarrow")
    COST.to_csv("cost.csv", index=False)
    REWARD.set_axis(pd.MultiIndex.from_product([["a"], [1, 2, 3]])).to_parquet("reward.parquet")
    said = fails(capsys, "allocate reward.parquet cost.csv 3.5")
    assert "reward.parquet: its rows or columns have names of several levels (MultiIndex)" in said
