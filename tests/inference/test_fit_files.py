"""The file of a fit: older ones are read, damaged ones refused, and what must be known of a fit is in it."""

import json
import os
from io import StringIO
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import save_file

from fieldguide.catalog import get
from fieldguide.inference import fit, hsic, load
from fieldguide.inference.checkpoint import FORMAT, read_file, table_text, write_file
from fieldguide.inference.checks.files import process_mark, write_bytes

X = {"x": np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)}
QUICK = {"max_epochs": 2, "progress": False, "n_latent": 1}
REFERENCE = Path(__file__).parents[1] / "reference"


def golden_data() -> anndata.AnnData:
    """The cells that the files in the folder reference were fitted to."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (40, 6)).astype(np.float32)
    obs = pd.DataFrame(
        {"batch": rng.choice(["s1", "s2"], 40), "depth": counts.sum(1)}, index=[f"c{i}" for i in range(40)]
    )
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(6)]))


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_of_every_format_still_loads(number):
    """One file a format: fit-1 is that of version 0.1. What it loads as predicts as it did when it was written."""
    fitted = load(REFERENCE / f"fit-{number}.safetensors")
    assert fitted.name == "scvi" and len(fitted.history) == 2 and not fitted.interrupted
    assert fitted.constraints == (hsic("z", "depth", weight=3.0),)
    latent = json.loads((REFERENCE / "fit_latent.json").read_text())["latent"]
    np.testing.assert_allclose(fitted.latent(golden_data()), latent, atol=1e-5)
    assert np.isfinite(fitted.posterior(golden_data(), particles=30).log_evidence).all()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "fit.safetensors"
    fit("ppca", X, **QUICK).save(path)
    return path


def test_every_flipped_bit_is_noticed(saved, tmp_path):
    content, damaged = saved.read_bytes(), tmp_path / "damaged"
    rng = np.random.default_rng(0)
    places = {*rng.choice(len(content), 280, replace=False).tolist(), *range(8), *range(len(content) - 8, len(content))}
    for place in sorted(places):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            load(damaged)
    for length in (0, 1, 7, 8, 9, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            load(damaged)
    damaged.write_bytes(content + b"0")
    with pytest.raises(ValueError, match="damaged"):
        load(damaged)


def test_settings_that_cannot_be_read_name_the_file(tmp_path):
    path = tmp_path / "odd.safetensors"
    for content in ("{", "{}", "[]", '{"entry": "ppca"}', "null"):
        save_file({"a": torch.ones(2)}, path, metadata={"format": "fieldguide-fit-1", "fit": content})
        with pytest.raises(ValueError, match="odd.safetensors"):
            load(path)
    save_file({"a": torch.ones(2)}, path, metadata={"format": "fieldguide-fit-1"})
    with pytest.raises(ValueError, match="odd.safetensors is damaged"):
        load(path)
    for name, error in (("absent", FileNotFoundError), (".", IsADirectoryError), ("", TypeError)):
        with pytest.raises(error, match="path|file|folder"):
            load(tmp_path / name if name else name)


def test_a_file_says_what_it_was_written_with_and_for_which_program(saved):
    tensors, content = read_file(saved)
    assert {"python", "torch", "pyro-ppl", "anndata"} <= set(content["versions"]) and content["interrupted"] is False
    with pytest.raises(ValueError, match="holds a fit of PPCA, not of SCVI"):
        load(saved, program=get("scvi").program)
    assert torch.equal(load(saved, program=get("ppca").program).program.loadings, tensors["loadings"])


def test_a_history_is_read_as_pandas_would_have_written_it_and_exactly():
    table = pd.DataFrame(
        {
            "epoch": [0, 1, 2],
            "train": [0.1 + 0.2, np.nan, 1e-300],
            "price": [np.inf, -np.inf, -0.0],
            "settled": [True, False, True],
            "rule": ["a", 'quote " and \\', ""],
        }
    )

    def read(text):
        return pd.read_json(StringIO(text), orient="table", precise_float=True)

    written = read(table_text(table))
    pd.testing.assert_frame_equal(written, read(table.to_json(orient="table", index=False, double_precision=15)))
    assert written["train"][0] == table["train"][0] and written["train"][2] == 1e-300


def test_an_interrupt_while_a_fit_is_written_is_one(saved, tmp_path, monkeypatch):
    """Pandas' writer of JSON takes it for an error of its own: a fit is written without it."""
    fitted = load(saved)
    monkeypatch.setattr(pd.DataFrame, "to_json", lambda *a, **k: pytest.fail("written by pandas"))
    fitted.save(tmp_path / "again")
    pd.testing.assert_frame_equal(load(tmp_path / "again").history, fitted.history)


def test_parameters_that_are_missing_values_are_no_fit(saved, tmp_path):
    tensors, content = read_file(saved)
    write_file(tmp_path / "fit", {name: tensor * torch.nan for name, tensor in tensors.items()}, content)
    with pytest.raises(ValueError, match="holds no usable fit: '.*' has missing values"):
        load(tmp_path / "fit")
    assert FORMAT == "fieldguide-fit-2"  # a new format needs a file of its own in the folder reference


def test_numbers_of_numpy_among_the_arguments_can_be_saved(tmp_path):
    fitted = fit("ppca", X, **QUICK | {"n_latent": np.int64(2)})
    fitted.save(tmp_path / "fit")
    assert load(tmp_path / "fit").arguments["n_latent"] == 2


def test_files_are_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"first")
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)
    write_bytes(tmp_path / "link", b"second")
    assert path.read_bytes() == b"second" and (tmp_path / "link").is_symlink() and path.stat().st_mode & 0o777 == 0o640
    gone = process_mark().replace(str(os.getpid()), "999999999")
    left = tmp_path / f".a.bin.{gone}-0a.part"  # of a process killed where files cannot be without a name
    left.write_bytes(b"half")
    write_bytes(path, b"third")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "link"]
    with pytest.raises(OSError, match="there is no folder"):
        write_bytes(tmp_path / "absent" / "a", b"")


def test_files_are_written_whole_without_nameless_files_too(tmp_path, monkeypatch):
    monkeypatch.delattr("os.O_TMPFILE", raising=False)
    write_bytes(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content" and len(list(tmp_path.iterdir())) == 1
