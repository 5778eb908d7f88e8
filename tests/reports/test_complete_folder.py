"""A folder that appears complete or not at all, whoever else writes it."""

import os
import shutil
import subprocess
import sys

import pytest

from fieldguide.inference.checks.files import process_mark
from fieldguide.reports.complete_folder import complete_folder


def test_an_older_report_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    old = tmp_path / "out"
    with complete_folder(old) as partial:
        (partial / "report.html").write_text("old")
    with pytest.raises(FileExistsError, match="out exists already"), complete_folder(old):
        pytest.fail("refused before the work")
    with pytest.raises(RuntimeError), complete_folder(old, overwrite=True) as partial:
        (partial / "report.html").write_text("half")
        raise RuntimeError
    assert (old / "report.html").read_text() == "old"
    with complete_folder(old, overwrite=True) as partial:
        (partial / "report.html").write_text("new")
    assert (old / "report.html").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("at", ["made", "removed"])
def test_an_interrupt_at_the_edges_leaves_nothing_behind(tmp_path, monkeypatch, at):
    """Between the folder's making and the first line that knows it; and while what was there before is removed."""
    from fieldguide.reports import complete_folder as module

    where, name = (module.Path, "mkdir") if at == "made" else (module.shutil, "rmtree")
    plain, calls = getattr(where, name), []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if at == "made":
            plain(*args, **kwargs)
        if len(calls) == 1:
            raise KeyboardInterrupt
        if at == "removed":
            plain(*args, **kwargs)

    monkeypatch.setattr(where, name, interrupted)
    with pytest.raises(KeyboardInterrupt), complete_folder(tmp_path / "out") as partial:
        (partial / "report.html").write_text("half")
        raise RuntimeError
    assert calls and not list(tmp_path.iterdir())


def test_other_folders_are_never_replaced(tmp_path):
    precious = tmp_path / "thesis"
    precious.mkdir()
    with complete_folder(precious) as partial:
        (partial / "chapter.txt").write_text("an empty folder is taken")
    with pytest.raises(FileExistsError, match="has no report.html"), complete_folder(precious, overwrite=True):
        pytest.fail("refused before the work")
    with pytest.raises(FileExistsError, match="is a file"), complete_folder(precious / "chapter.txt", overwrite=True):
        pytest.fail("refused before the work")
    assert (precious / "chapter.txt").exists()


def test_an_unwritable_place_is_named_before_the_work(tmp_path, monkeypatch):
    with (
        pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"),
        complete_folder(tmp_path / "nowhere/x"),
    ):
        pytest.fail("refused before the work")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    with (
        pytest.raises(PermissionError, match="cannot write into .*: Permission denied"),
        complete_folder(tmp_path / "x"),
    ):
        pytest.fail("refused before the work")


def test_what_killed_writers_left_is_cleared_and_an_older_report_comes_back(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mark = process_mark().replace(str(os.getpid()), str(gone.pid))
    left = [tmp_path / f".out.{mark}-1-abc", tmp_path / f".out.{mark}-1-abc-aside"]
    others = [tmp_path / f".out.{process_mark()}-1-abc", tmp_path / ".out.00000000-1-1-abc", tmp_path / ".outer"]
    for folder in left + others:
        folder.mkdir()
        (folder / "report.html").write_text(folder.name)
    with (
        pytest.raises(FileExistsError, match="out exists already|another process is writing"),
        complete_folder(tmp_path / "out"),
    ):
        pytest.fail("refused before the work")
    assert not any(folder.exists() for folder in left) and all(folder.exists() for folder in others)
    assert (tmp_path / "out" / "report.html").read_text() == left[1].name, "it was put aside and is in its place again"


def test_two_writers_of_one_folder(tmp_path):
    """Without overwrite the later one is refused at once; with it, the last to end wins, whole."""
    with complete_folder(tmp_path / "out") as first:
        (first / "report.html").write_text("first")
        with pytest.raises(FileExistsError, match="another process is writing"), complete_folder(tmp_path / "out"):
            pytest.fail("refused before the work")
        with complete_folder(tmp_path / "out", overwrite=True) as second:
            (second / "report.html").write_text("second")
            (second / "more").write_text("second")
        shutil.rmtree(tmp_path / "out")
    with complete_folder(tmp_path / "out", overwrite=True) as first:
        (first / "report.html").write_text("later")
        with complete_folder(tmp_path / "out", overwrite=True) as second:
            (second / "report.html").write_text("sooner")
            (second / "more").write_text("sooner")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.read_text() for p in (tmp_path / "out").iterdir()] == ["later"]


def test_folders_where_the_system_cannot_exchange_names(tmp_path, monkeypatch):
    monkeypatch.setattr("fieldguide.reports.complete_folder._exchange", lambda *_: False)
    for turn in range(3):
        with complete_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "report.html").write_text(str(turn))
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "report.html").read_text() == "2"


def test_a_report_over_its_own_data_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("report.html", "cells.h5ad"):
        (tmp_path / "out" / name).write_text("precious")
    with (
        pytest.raises(ValueError, match="cells.h5ad is an input"),
        complete_folder(tmp_path / "out", True, [tmp_path / "out" / "cells.h5ad"]),
    ):
        pytest.fail("refused before the work")
