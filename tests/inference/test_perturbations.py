"""The field of perturbations: what labels say, controls, several perturbations of a cell, and what is refused."""

import anndata
import numpy as np
import pandas as pd
import pytest

from fieldguide.inference import Counts, Perturbations, Schema, SchemaError


def cells(labels):
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    return anndata.AnnData(np.ones((len(labels), 2), dtype=np.float32), obs=obs)


def codes(labels, field=None, new=None):
    schema = Schema(perturbation=field or Perturbations())
    fitted = schema.learn(cells(labels))
    return fitted.read(cells(labels if new is None else new))["perturbation"].values.tolist()


@pytest.mark.filterwarnings("ignore:.*there are no controls")
def test_labels_become_codes_in_the_order_of_names():
    assert codes(["b", "a", "b", "a"]) == [[1], [0], [1], [0]]
    assert codes([2, 1, 2, 1]) == codes(["2", "1", "2", "1"]) == [[1], [0], [1], [0]]
    assert codes(pd.Categorical(["a", "b", "a", "b"], categories=["z", "b", "a"])) == [[0], [1], [0], [1]]


@pytest.mark.filterwarnings("ignore:.*there are no controls")
def test_several_perturbations_of_a_cell():
    labels = ["a", "b", "b+a", "a + c", "a", "b", "c", "c"]
    assert codes(labels)[:4] == [[0, -1], [1, -1], [0, 1], [0, 2]]
    assert codes(["a", "b", "a", "b"], new=["b+a+b", "a"]) == [[0, 1], [0, -1]], "new data may have more"
    assert codes(["a;b", "a", "a", "b", "b"], Perturbations(separator=";"))[0] == [0, 1]


def test_controls_have_no_code():
    with pytest.warns(UserWarning, match="'non-targeting' in 'perturbation' is read as no perturbation"):
        assert codes(["non-targeting", "a", "a"]) == [[-1], [0], [0]]
    assert codes(["AAVS1", "a", "a"], Perturbations(control="AAVS1")) == [[-1], [0], [0]]
    with pytest.warns(UserWarning, match="'ctrl'"):
        assert codes(["ctrl", "a+ctrl", "a"]) == [[-1], [0], [0]], "as public data write single perturbations"
    with pytest.warns(UserWarning, match="there are no controls"):
        assert codes(["a", "a", "b", "b"], new=["ctrl", "a"]) == [[-1], [0]], "words are known without training cells"


def test_where_controls_are_named_usual_words_are_perturbations():
    named = Perturbations(control="veh")
    labels = ["veh", "A", "DMSO", "A+DMSO", "A+veh"] * 2
    assert codes(labels, named)[:5] == [[-1, -1], [0, -1], [1, -1], [0, 1], [0, -1]]
    assert codes(["veh", "A", "A+ctrl"] * 2, named)[:3] == [[-1], [0], [0]], "it never stands alone"
    for label in ("DMSO", "ctrl"):
        with pytest.raises(SchemaError, match=f"perturbation '{label}' of cell 'c1' was not in the training data"):
            codes(["veh", "A"] * 2, named, new=["A", label])


def test_a_separator_at_an_end_belongs_to_the_name():
    assert codes(["Ca2+", "Ca2", "ctrl2+Ca2+", "veh"] * 2, Perturbations(control="veh"))[:4] == [[1], [0], [2], [-1]]


def test_an_entry_that_needs_controls_needs_them_whatever_field_is_given():
    schema = Schema(perturbation=Perturbations(needs_control=True))
    with pytest.raises(SchemaError, match="there are no controls: .*Say which it is"):
        schema.learn(cells(["a", "b"] * 2), {"perturbation": Perturbations("perturbation", separator="&")})
    with pytest.raises(TypeError, match="needs_control must be True or False"):
        Perturbations(needs_control="yes")


@pytest.mark.filterwarnings("ignore:.*there are no controls", "ignore:.*has one cell")
def test_what_is_wrong_is_named():
    with pytest.raises(SchemaError, match="no cell has the control 'AAVS1' in .*; there are 'a', 'b'"):
        codes(["a", "b"], Perturbations(control="AAVS1"))
    with pytest.raises(SchemaError, match=r"there are no controls: .* there are 'a', 'b'. Say which it is by"):
        codes(["a", "b", "a", "b"], Perturbations(needs_control=True))
    with pytest.raises(SchemaError, match="perturbation 'x' of cell 'c1' was not in the training data"):
        codes(["a", "b", "a", "b"], new=["a", "a+x"])
    with pytest.raises(SchemaError, match="of cell 'c1' is missing"):
        codes(["a", None, "b"])
    with pytest.raises(SchemaError, match="label '\\+' of column 'perturbation' names no perturbation"):
        codes(["a", "+", "a"])
    with pytest.raises(SchemaError, match="names no perturbation: it has 'AAVS1' alone"):
        codes(["AAVS1", "AAVS1"], Perturbations(control="AAVS1"))
    with pytest.warns(UserWarning, match=r"perturbation 'b' has one cell \(1 such perturbations\)"):
        codes(["a", "b", "a", "c"], Perturbations(control="c"))
    with pytest.warns(
        UserWarning, match="there are no controls: .* there are 'AAVS1', 'a'. If one of them is a control"
    ):
        codes(["a", "AAVS1"] * 2)
    with pytest.raises(ValueError, match="separator must not be empty"):
        Perturbations(separator="")


@pytest.mark.filterwarnings("ignore:.*there are no controls")
def test_the_size_of_a_program_is_the_number_of_perturbations():
    fitted = Schema(counts=Counts("X"), perturbation=Perturbations()).learn(cells(["a", "b", "a+b", "b", "a"]))
    assert fitted.sizes() == {"n_genes": 2, "n_perturbation": 2}
