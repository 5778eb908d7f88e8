"""The field of groups: background first, what is taken for it, and what is refused."""

import anndata
import numpy as np
import pandas as pd
import pytest

from fieldguide.inference import Groups, Schema, SchemaError


def cells(labels):
    obs = pd.DataFrame({"group": labels}, index=[f"c{i}" for i in range(len(labels))])
    return anndata.AnnData(np.ones((len(labels), 2), dtype=np.float32), obs=obs)


def codes(labels, field=None, new=None):
    fitted = Schema(group=field or Groups()).learn(cells(labels))
    return fitted.read(cells(labels if new is None else new))["group"].values.tolist()


def test_the_background_has_the_lowest_codes():
    assert codes(["b", "a", "c", "c", "b", "a"], Groups(background="c")) == [2, 1, 0, 0, 2, 1]
    both = Schema(group=Groups(background=["c", "b"])).learn(cells(["b", "a", "c", "c", "b", "a"]))
    assert both.sizes() == {"n_group": 3, "n_background": 2}
    assert both.read(cells(["a", "b", "c"]))["group"].values.tolist() == [2, 1, 0]
    assert (
        codes([2, 1, 2, 1], Groups(background="2")) == codes(["2", "1"] * 2, Groups(background=["2"])) == [0, 1, 0, 1]
    )


def test_a_background_is_a_label_of_any_type_each_once():
    assert Groups(background=3).background == Groups(background=3.0).background == ("3",)
    assert Groups(background=np.array(["b", "a", "b"])).background == ("b", "a")
    assert codes([2, 1, 2, 1], Groups(background=2)) == [0, 1, 0, 1]
    assert codes([2, 1, 2, 1], Groups(background=[2, "2"])) == [0, 1, 0, 1]
    for wrong in (None, [None], {"a": 1}, [["a"]], float("nan")):
        with pytest.raises(TypeError, match="background must be a label or a list of labels"):
            Groups(background=wrong)


def test_usual_words_are_taken_for_the_background_and_said():
    with pytest.warns(UserWarning, match=r"'ctrl' of column 'group' is read as the background; Groups\('group', back"):
        assert codes(["stim", "ctrl", "stim", "ctrl"]) == [1, 0, 1, 0]
    none = Schema(group=Groups()).learn(cells(["b", "a", "a", "b"]))
    assert none.sizes() == {"n_group": 2, "n_background": 0}, "groups may be equal"


def test_what_is_wrong_is_named():
    with pytest.raises(SchemaError, match="no cell is of the background 'AAVS1' in column 'group'; there are 'a', 'b'"):
        codes(["a", "b"], Groups(background="AAVS1"))
    with pytest.raises(SchemaError, match="column 'group' has one group, 'a': there is nothing to compare"):
        codes(["a", "a"])
    with pytest.raises(SchemaError, match="has the background 'a', 'b' alone: there is no group to compare with it"):
        codes(["a", "b", "a", "b"], Groups(background=["a", "b"]))
    with pytest.raises(SchemaError, match="category 'x' of column 'group' was not in the training data"):
        codes(["a", "b", "a", "b"], Groups(background="a"), new=["a", "x"])
    with pytest.raises(SchemaError, match="cell 'c1' is missing|missing.*'c1'"):
        codes(["a", None, "b"], Groups(background="a"))
    with pytest.warns(UserWarning, match="group 'b' has one cell: what is its own cannot be told from chance"):
        codes(["a", "b", "a"], Groups(background="a"))
