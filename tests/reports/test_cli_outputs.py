"""What commands write: never over what they read, whole or not at all, and with the right exit code."""

import os
import re
import signal
import sys

import anndata
import numpy as np
import pandas as pd
import pytest

from fieldguide import cli, inference
from fieldguide.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with files whose content no command may come to read."""
    monkeypatch.chdir(tmp_path)
    for name in ("data.h5ad", "other.h5ad", "a.csv", "b.csv", "c.csv", "draws.npy"):
        (tmp_path / name).write_text("precious")
    os.link("data.h5ad", "hard.h5ad")
    os.symlink("data.h5ad", "soft.h5ad")
    return tmp_path


OVER = [
    ("fit scvi data.h5ad --output data.h5ad", "data.h5ad is an input"),
    ("fit scvi data.h5ad --output ./x/../data.h5ad", "data.h5ad is an input"),
    ("fit scvi data.h5ad --output hard.h5ad", "hard.h5ad is an input"),
    ("fit scvi data.h5ad --output soft.h5ad", "soft.h5ad is an input"),
    ("de other.h5ad data.h5ad --groupby g --group a --output data.h5ad", "data.h5ad is an input"),
    ("de other.h5ad data.h5ad --groupby g --group a --output other.h5ad", "other.h5ad is an input"),
    ("join a=data.h5ad b=other.h5ad --output other.h5ad", "other.h5ad is an input"),
    ("impute other.h5ad data.h5ad --output data.h5ad", "data.h5ad is an input"),
    ("impute other.h5ad data.h5ad --output other.h5ad", "other.h5ad is an input"),
    ("policy evaluate a.csv b.csv --output b.csv", "b.csv is an input"),
    ("policy evaluate a.csv b.csv --logging c.csv --report c.csv", "c.csv is an input"),
    ("policy evaluate a.csv b.csv --embedding c.csv --output c.csv", "c.csv is an input"),
    ("policy learn a.csv b.csv c.csv --output b.csv", "b.csv is an input"),
    ("policy learn a.csv b.csv c.csv --report a.csv", "a.csv is an input"),
    ("allocate a.csv b.csv 3 --output a.csv", "a.csv is an input"),
    ("allocate a.csv b.csv 3 --redeemed c.csv --output c.csv", "c.csv is an input"),
    ("allocate a.csv b.csv 3 --draws draws.npy --report draws.npy", "draws.npy is an input"),
    ("allocate a.csv b.csv 3 --output new --report ./new", "new is given for two outputs"),
    ("policy evaluate a.csv b.csv --output new --report new", "new is given for two outputs"),
    ("allocate a.csv b.csv 3 --output o.xlsx", "o.xlsx: tables are written as .csv, .csv.gz, .parquet or .feather"),
    ("policy evaluate a.csv b.csv --output o.tsv", "o.tsv: tables are written as"),
    ("policy learn a.csv b.csv c.csv --output o.json", "o.json: tables are written as"),
    ("de other.h5ad data.h5ad --groupby g --group a --output o.xlsx", "o.xlsx: tables are written as"),
    ("compare scvi data.h5ad --output data.h5ad --overwrite", "data.h5ad is a file, not a folder"),
    ("compare scvi study/data.h5ad --output study --overwrite", "study/data.h5ad is an input"),
]


@pytest.mark.parametrize(
    ("words", "message"), OVER, ids=[words.split()[0] + str(n) for n, (words, _) in enumerate(OVER)]
)
def test_no_output_is_an_input(here, words, message, capsys):
    (here / "x").mkdir()
    (here / "study").mkdir()
    for name in ("report.html", "data.h5ad"):  # data that someone keeps with an older report
        (here / "study" / name).write_text("precious")
    assert main(words.split()) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert {p.read_text() for p in here.rglob("*") if p.is_file()} == {"precious"}
    assert not [p for p in here.rglob(".*")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("join a=data.h5ad a=other.h5ad", "join: 'a' is given twice, a=data.h5ad and a=other.h5ad"),
        ("fit scvi data.h5ad --model n_latent=2 n_latent=3", "--model: 'n_latent' is given twice"),
        ("fit scvi data.h5ad --fields batch=a batch=b", "--fields: 'batch' is given twice"),
        ("policy", "takes evaluate or learn"),
        ("allocate a.csv b.csv 3 --overspend 0.1", "--redeemed"),
        ("compare --group B", "asks for --groupby"),
    ],
)
def test_words_that_make_no_command_are_of_code_2(here, words, message, capsys):
    (here / "data.h5ad").unlink()  # else its content is looked at first
    anndata.AnnData(np.ones((3, 2), dtype=np.float32)).write_h5ad("data.h5ad")
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit scvi data.h5ad --seed -1", "--seed must be"),
        ("fit scvi data.h5ad --max-epochs 0", "--max-epochs must be a whole number of at least 1, not 0"),
        ("fit scvi data.h5ad --max-epochs -1", "--max-epochs must be a whole number of at least 1, not -1"),
        ("fit scvi data.h5ad --early-stopping 0", "--early-stopping must be a whole number of at least 1"),
        ("fit scvi data.h5ad --model n_hidden=a", "--model: n_hidden of scvi must be a whole number, not 'a'"),
        ("fit scvi data.h5ad --model n_latent=2.5", "--model: n_latent of scvi must be a whole number, not 2.5"),
        ("fit scvi data.h5ad --model dropout=much", "--model: dropout of scvi must be a number, not 'much'"),
        ("compare scvi data.h5ad --max-epochs 0", "--max-epochs must be"),
        ("compare scvi data.h5ad --seed -1", "--seed must be"),
        ("de other.h5ad data.h5ad --groupby g --group a --seed -1", "--seed must be"),
        ("de other.h5ad data.h5ad --groupby g --group a --draws 0", "--draws must be"),
        ("impute other.h5ad data.h5ad --draws 0", "--draws must be"),
        ("policy learn a.csv b.csv c.csv --max-epochs 0", "--max-epochs must be"),
        ("policy learn a.csv b.csv c.csv --top 0", "--top must be"),
        ("policy learn a.csv b.csv c.csv --top -1", "--top must be"),
        ("policy evaluate a.csv b.csv --seed -1", "--seed must be"),
    ],
)
def test_numbers_are_refused_before_anything_is_read(here, words, message, capsys):
    assert main(words.split()) == 1
    assert message in capsys.readouterr().err


def test_help_names_what_stands_without_a_dash(capsys):
    wanted = {
        "fit": "NAME DATA",
        "compare": "[NAME] [DATA]",
        "de": "FIT DATA",
        "impute": "FIT DATA",
        "join": "NAME=FILE",
        "cite": "NAME",
        "allocate": "REWARD COST BUDGET",
        "policy evaluate": "LOG POLICY",
        "policy learn": "LOG CONTEXT LOGGING",
    }
    for command, names in wanted.items():
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        shown = capsys.readouterr().out
        for name in names.replace("[", "").replace("]", "").split():
            assert re.search(rf"^\W*{re.escape(name)}\b", shown, re.M), (command, name, shown)
        assert not re.search(r"^[^-\w]*(STR|PATH|FLOAT)\b", shown, re.M), shown


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            RuntimeError("PyTorch is not linked with support for mps devices\nmore"),
            1,
            "unexpected error: RuntimeError: ",
        ),
        (AssertionError(), 1, "unexpected error: AssertionError: AssertionError; --debug shows where"),
        (AttributeError("x"), 1, "unexpected error: AttributeError: x; --debug shows where"),
        (MemoryError("8 GB"), 1, "error: out of memory: 8 GB"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device"),
        (ImportError("pyarrow"), 1, "error: pyarrow"),
        (KeyError("no entry 'x'"), 1, "error: no entry 'x'"),
        (cli.UsageError("words"), 2, "error: words"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_any_exception_is_one_line(error, code, said, monkeypatch, capsys):
    def fail(name: str) -> None:
        """Fail."""
        raise error

    monkeypatch.setitem(cli.COMMANDS, "cite", fail)
    assert main(["cite", "--name", "x"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(f"fieldguide: {said}") and shown.count("\n") == 1
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            main(["cite", "--name", "x", "--debug"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_turns_into_another_error_is_an_interruption(number, code, monkeypatch, capsys):
    def fail(name: str) -> None:
        """Fail."""
        try:
            os.kill(os.getpid(), number)
            raise ValueError("too late")
        except KeyboardInterrupt:
            if name == "dropped":
                return
            raise RuntimeError("callback failed") from None

    monkeypatch.setitem(cli.COMMANDS, "cite", fail)
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # a shell has what it starts in the background ignore SIGINT
    try:
        for name in ("turned", "dropped"):
            assert main(["cite", "--name", name]) == code
            assert capsys.readouterr().err == "fieldguide: interrupted\n"
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)


def test_output_that_nobody_reads(tmp_path):
    """fieldguide list | head -1, and onto a full disk."""
    import subprocess

    command = f"{sys.executable} -m fieldguide list"
    done = subprocess.run(f"{command} | head -1", shell=True, capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and done.returncode == 0
    if os.path.exists("/dev/full"):
        done = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and done.stderr == "fieldguide: error: No space left on device\n"


@pytest.fixture
def cells(tmp_path):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"cluster": rng.integers(3, size=60), "kind": list("ab") * 30}, index=[f"c{i}" for i in range(60)]
    )
    data = anndata.AnnData(rng.poisson(3.0, (60, 8)).astype(np.float32), obs=obs)
    data.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


TINY = ["--max-epochs", "2", "--model", "n_hidden=4", "n_latent=2"]


def test_an_interrupted_fit_leaves_an_older_file_or_says_so(cells, tmp_path, monkeypatch, capsys):
    output = tmp_path / "fit.safetensors"
    words = ["fit", "scvi", str(cells), "--output", str(output), *TINY]
    assert main(words) == 0
    good = output.read_bytes()
    fit = inference.fit

    def interrupted(*given, epochs, **settings):
        fitted = fit(*given, **settings)
        fitted.interrupted, fitted.history = True, fitted.history.iloc[:epochs]
        return fitted

    monkeypatch.setattr(inference, "fit", lambda *g, **s: interrupted(*g, epochs=0, **s))
    assert main([*words, "--seed", "1"]) == 130
    assert "nothing is saved" in capsys.readouterr().err and output.read_bytes() == good
    monkeypatch.setattr(inference, "fit", lambda *g, **s: interrupted(*g, epochs=1, **s))
    assert main([*words, "--seed", "1"]) == 130
    shown = capsys.readouterr()
    assert "the file holds what was learnt so far" in shown.err and "1 epochs" in shown.out
    assert output.read_bytes() != good
    with pytest.warns(UserWarning, match="interrupted after 1 epoch"):
        assert len(inference.load(output).history) == 1


def test_a_group_of_numbers_is_named_by_its_number(cells, tmp_path, capsys):
    output = tmp_path / "fit.safetensors"
    assert main(["fit", "scvi", str(cells), "--output", str(output), *TINY]) == 0
    for command in (
        ["de", str(cells), str(output), "--groupby", "cluster", "--group", "1"],
        ["impute", *[str(cells)] * 2],
    ):
        assert main(command) == 1
        assert "cells.h5ad is an h5ad file, not a fit: FIT comes first" in capsys.readouterr().err
    assert main(["de", str(output), str(cells), "--groupby", "cluster", "--group", "1", "--draws", "30"]) == 0
    assert "1 against all other cells" in capsys.readouterr().out


def test_an_interrupt_that_a_finaliser_drops_is_remembered_without_a_traceback(monkeypatch):
    class Dropped:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with cli.interruptions() as received:
        Dropped()
    assert received == [signal.SIGTERM] and not told
    Broken = type("Broken", (), {"__del__": lambda self: 1 / 0})
    with cli.interruptions():
        Broken()
    assert [event.exc_type for event in told] == [ZeroDivisionError], "what is no interrupt is told as ever"
