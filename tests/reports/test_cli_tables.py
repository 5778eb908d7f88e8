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


@pytest.fixture
def shop():
    """A log of two actions with text that pandas takes for missing, and a policy for each row."""
    rng = np.random.default_rng(0)
    taken = rng.integers(2, size=200)
    rows = [f"u{i}" for i in range(200)]
    log = pd.DataFrame({"action": np.array(["None", "1"])[taken], "reward": taken * 1.0, "propensity": 0.5}, index=rows)
    chances = pd.DataFrame({"None": 0.1, "1": 0.9}, index=rows)
    return log, chances


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
    for mark, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        for decimal in ".,":
            REWARD.to_csv("odd.csv", sep=mark, decimal=decimal)
            assert f"odd.csv is separated by {called}" in fails(capsys, "allocate odd.csv cost.csv 3")
    (here / "folder.csv").mkdir()
    assert "folder.csv is no file" in fails(capsys, "allocate folder.csv cost.csv 3")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "id,none,a\nk1,0,2,50\nk2,0,2,50\n",
            "odd.csv, line 2 has 4 fields and the header 3: decimal commas, a trailing",
        ),
        ("id,none,a\nk1,0,2,\nk2,0,2,\n", "odd.csv, line 2 has 4 fields and the header 3: decimal commas, a trailing"),
        ("none,a\nk1,0,2\nk2,0,2\n", "odd.csv, line 2 has 3 fields and the header 2"),  # names without a heading
        ("id,none,a\n\nk1,0,2\nk2,0,2,50\n", "odd.csv, line 4 has 4 fields and the header 3"),
        ('id,none,a\n"k\n1",0,2\nk2,0\n', "odd.csv, line 4 has 2 fields and the header 3: is something missing?"),
        ("made by R\nid,none,a\nk1,0,2\n", "odd.csv, line 2 has 3 fields and the header 1: headings come first"),
        ("# made by R\nid,none,a\nk1,0,2\n", "odd.csv begins with a comment: its first line"),
        (
            "# made; by R, 2026\nid,none,a\nk1,0,2\n",
            "odd.csv begins with a comment: its first line",
        ),
        ("id,none,a,a\nk1,0,2,3\n", "odd.csv has several columns 'a'"),
        ("id,none,a\nk\u00eb,0,2\n".encode("latin-1"), "odd.csv is no text in UTF-8 (line 2): save it as CSV"),
        ("id,none,a\nk1,0,2\n".encode("utf-16"), "odd.csv is no text in UTF-8 (line 1)"),
    ],
)
def test_lines_that_would_shift_the_columns_are_named(content, said, here, capsys):
    (here / "odd.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    (here / "fine.csv").write_text("id,none,a\nk1,0,5\nk2,0,3\n")
    assert said in fails(capsys, "allocate fine.csv odd.csv 3")
    assert said in fails(capsys, "allocate odd.csv fine.csv 3")
    assert said in fails(capsys, "policy evaluate odd.csv fine.csv")


def test_quotes_byte_order_marks_and_blank_lines_are_read_as_they_were(here):
    text = '\ufeffid,"none","one, or so"\r\n"k, 1",0,"2"\r\n\r\n"k ""2""",1,3\r\n'
    (here / "odd.csv").write_bytes(text.encode())
    found = tables.with_names(tables.read_table(here / "odd.csv"))
    assert found.columns.tolist() == ["none", "one, or so"] and found.index.tolist() == ["k, 1", 'k "2"']
    assert found.to_numpy().tolist() == [[0, 2], [1, 3]]


def test_names_of_several_levels_are_named(here, capsys):
    pytest.importorskip("pyarrow")
    COST.to_csv("cost.csv")
    REWARD.set_axis(pd.MultiIndex.from_arrays([list("abc"), [1, 2, 3]])).to_parquet("reward.parquet")
    assert "reward.parquet: its rows have names of several levels" in fails(
        capsys, "allocate reward.parquet cost.csv 3"
    )


def test_the_names_of_an_index_are_a_column_too(here, capsys):
    """The example of the page on commands, and files of which one alone has the column."""
    pytest.importorskip("pyarrow")
    REWARD.rename_axis("customer_id").to_parquet("reward.parquet")
    costs = COST.iloc[[0, 0, 0]].set_axis(REWARD.index[::-1]).rename_axis("customer_id")
    costs.to_csv("cost.csv")
    costs.rename_axis("who").to_csv("who.csv")
    costs.reset_index()[["none", "one", "customer_id", "two"]].to_csv("last.csv", index=False)
    page = "allocate reward.parquet cost.csv 3.5 --id customer_id --output allocation.parquet"
    assert main(page.split()) == 0
    wanted = pd.read_parquet("allocation.parquet")
    assert list(wanted.index) == ["007", "b", "c"] and wanted["cost"].sum() == pytest.approx(3.5)
    REWARD.assign(customer_id=REWARD.index).to_csv("reward.csv", index=False)
    for reward in ("reward.parquet", "reward.csv"):
        for cost in ("cost.csv", "who.csv", "last.csv"):
            found = allocation(f"{reward} {cost} 3.5 --id customer_id")
            assert list(found.index) == ["007", "b", "c"] and list(found["option"]) == list(wanted["option"]), cost
    said = fails(capsys, "allocate reward.csv who.csv 3.5 --id customer")
    assert "reward.csv has no column 'customer' for --id; there are none, one, two, customer_id" in said


def test_names_are_one_however_they_are_written(shop, capsys):
    REWARD.set_axis(["1", "02", "x"]).set_axis(["0", "1", "2"], axis=1).to_csv("reward.csv")
    costs = COST.iloc[[0, 0, 0]].set_axis(["x", "02", "1.0"]).set_axis(["0.0", "1.0", "2.0"], axis=1)
    costs.iloc[:, ::-1].to_csv("cost.csv")
    found = allocation("reward.csv cost.csv 3.5")
    assert list(found.index) == ["1", "02", "x"] and found.loc["02", "option"] == 2
    costs.set_axis(["x", "2", "1.0"]).to_csv("cost.csv")  # 02 is text
    assert "cost.csv has no row '02'" in fails(capsys, "allocate reward.csv cost.csv 3.5")
    costs.set_axis(["x", "1", "1.0"]).to_csv("cost.csv")
    assert "cost.csv has several rows '1'" in fails(capsys, "allocate reward.csv cost.csv 3.5")
    log, chances = shop
    values = []
    for names in (log.index, np.arange(200), np.arange(200).astype(float)):
        log.set_axis(np.arange(200) if names[0] == 0 else names).to_csv("log.csv")
        chances.set_axis(names).to_csv("policy.csv")
        assert main("policy evaluate log.csv policy.csv".split()) == 0
        values.append(pd.read_csv("policy_value.csv", index_col=0))
    pd.testing.assert_frame_equal(values[1], values[0])
    pd.testing.assert_frame_equal(values[2], values[0])


def test_what_does_not_fit_is_said_of_the_file(shop, capsys):
    REWARD.to_csv("reward.csv")
    COST.to_csv("cost.csv")
    COST.iloc[[0, 0]].set_axis(["007", "b"]).to_csv("short.csv")
    COST.rename(columns={"two": "three"}).to_csv("other.csv")
    assert "short.csv has no row 'c'" in fails(capsys, "allocate reward.csv short.csv 3")
    assert "short.csv has no row 'c'" in fails(capsys, "allocate reward.csv cost.csv 3 --redeemed short.csv")
    assert "reward.csv has no option 'three', which other.csv has" in fails(capsys, "allocate reward.csv other.csv 3")
    COST.drop(columns="two").to_csv("other.csv")
    assert "other.csv has no option 'two', which reward.csv has" in fails(capsys, "allocate reward.csv other.csv 3")
    log, chances = shop
    log.to_csv("log.csv")
    chances.iloc[1:].to_csv("policy.csv")
    assert "policy.csv has no row 'u0'" in fails(capsys, "policy evaluate log.csv policy.csv")


def test_draws_are_one_array(capsys):
    REWARD.to_csv("reward.csv")
    COST.to_csv("cost.csv")
    np.savez("draws.npz", np.zeros((5, 3, 3)))
    assert "draws.npz holds several arrays" in fails(capsys, "allocate reward.csv cost.csv 3 --draws draws.npz")


def test_a_context_that_is_logged_twice_has_one_row_of_the_policy(shop):
    log, chances = shop
    for row, repeated in enumerate((log, log.set_axis(["u0", *log.index[:-1]]))):
        repeated.to_csv("log.csv")
        chances.to_csv("policy.csv")
        assert main("policy evaluate log.csv policy.csv".split()) == 0, row


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
    learnt = pd.read_csv("learned_policy.csv", index_col=0)
    pd.DataFrame({"1": [0.5], "None": [0.5]}).to_csv("one.csv", index=False)  # in another order
    assert main(words.split()) == 0
    pd.testing.assert_frame_equal(pd.read_csv("learned_policy.csv", index_col=0), learnt, check_exact=True)
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
        ("id,none\nu0,0.1,0.2,0.3\n", "line 2 has 4 fields and the header 2"),
    ):
        with open("reward.csv", "w") as file:
            file.write(content)
        assert said in fails(capsys, "allocate reward.csv cost.csv 3.5")
