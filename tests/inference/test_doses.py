"""The field of doses: their order, their unit, and what is refused."""

import anndata
import numpy as np
import pandas as pd
import pytest

from fieldguide.inference import Doses, Perturbations, Schema, SchemaError


def cells(labels, doses):
    obs = pd.DataFrame({"drug": labels, "dose": doses}, index=[f"c{i}" for i in range(len(labels))])
    return anndata.AnnData(np.ones((len(labels), 2), dtype=np.float32), obs=obs)


def read(labels, doses, new=None, **given):
    data = cells(labels, doses)
    fitted = Schema(perturbation=Perturbations("drug", control="DMSO"), dose=Doses(beside="drug", **given)).learn(data)
    values = fitted.read(data if new is None else cells(*new))
    return values["perturbation"].values.tolist(), values["dose"].values.tolist()


def test_doses_are_shares_of_the_largest_of_their_perturbation():
    codes, doses = read(["a", "a", "b", "b", "DMSO"], [5, 10, 0.5, 0.25, 0])
    assert codes == [[0], [0], [1], [1], [-1]] and doses == [[0.5], [1], [1], [0.5], [0]]
    text = read(["a", "a", "b", "b", "DMSO"], ["5", "10.0", " 0.5", "2.5e-1", "vehicle"])[1]
    assert text == doses, "as text, and of a control nothing is read"
    assert read(["a", "a", "b", "b", "DMSO"], [5, 10, 0.5, 0.25, None])[1] == doses


def test_doses_stand_in_the_order_of_the_codes():
    labels, doses = ["a", "b", "b+a", "a+b", "DMSO"], ["4", "10", "5+2", "1+10", "0"]
    codes = [[0, -1], [1, -1], [0, 1], [0, 1], [-1, -1]]
    assert read(labels, doses) == (codes, [[1, 0], [1, 0], [0.5, 0.5], [0.25, 1], [0, 0]])
    joined = read(["a", "b", "a+DMSO", "a", "DMSO"], ["4", "1", "2+0", "4", "0"])[1]
    assert joined[2] == [0.5], "a part that is a control has a dose, which is left out"


def test_a_field_that_was_learnt_needs_no_settings_to_read():
    """A fit from a file has the places and what was learnt, and the fields of its entry."""
    from fieldguide.inference import FittedSchema

    field = Doses("dose", beside="drug", control="AAVS1", separator=";")
    data = cells(["a", "b;a", "AAVS1"], ["2", "3;1", None])
    learnt = Schema(dose=field).learn(data)
    again = FittedSchema(Schema(dose=Doses()), learnt.places, learnt.states)
    assert (
        again.read(data)["dose"].values.tolist()
        == learnt.read(data)["dose"].values.tolist()
        == [[1, 0], [0.5, 1], [0, 0]]
    )


def test_new_cells_have_the_unit_of_the_training_cells():
    new = read(["a", "a", "b", "DMSO"], [5, 10, 1, 0], new=(["a", "b"], [20, 0.1]))[1]
    np.testing.assert_allclose(new, [[2.0], [0.1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("doses", "message"),
    [
        (["1", "high", "1"], "dose of cell 'c1' in column 'dose' is 'high', not a number"),
        ([1, -2, 1], "dose of cell 'c1' in column 'dose' is -2(.0)?; doses are at least 0"),
        (["1", "inf", "1"], "is inf; doses are at least 0"),
        ([1, None, 1], "dose of cell 'c1' in column 'dose' is missing"),
        (["1", "1+2", "1"], "cell 'c1' has 1 perturbations, 'a', and 2 doses, '1\\+2'"),
        ([1, 0, 0], "perturbation 'a' has the dose 0 in every cell"),
    ],
)
def test_what_is_no_dose_is_named(doses, message):
    labels = ["b", "a", "a" if "every" in message else "b"]
    with pytest.raises(SchemaError, match=message):
        read([*labels, "DMSO"], [*doses, doses[0]])


def test_a_usual_word_is_a_perturbation_where_other_controls_are_named():
    """As `Perturbations` has it: DMSO beside vehicle is a treatment with its dose."""
    labels, doses = ["vehicle", "DMSO", "DMSO", "b"], [0, 2, 1, 3]
    fields = {"perturbation": Perturbations("drug", control="vehicle")}
    schema = Schema(**fields, dose=Doses("dose", beside="drug", control="vehicle")).learn(cells(labels, doses))
    values = schema.read(cells(labels, doses))
    assert values["perturbation"].values.tolist() == [[-1], [0], [0], [1]]
    assert values["dose"].values.tolist() == [[0], [1], [0.5], [1]]
    with pytest.raises(SchemaError, match="perturbation 'NT' of cell 'c0' was not in the training data"):
        schema.read(cells(["NT", "b"], [9, 3]))
    both = schema.read(cells(["DMSO+b", "vehicle"], ["1+3", "0"]))
    assert both["perturbation"].values.tolist() == [[0, 1], [-1, -1]]
    assert both["dose"].values.tolist() == [[0.5, 1], [0, 0]]


def test_doses_of_a_perturbation_that_is_named_twice_add_up():
    doses = read(["a", "b", "a+a+b", "a+a", "DMSO"], ["10", "10", "1+2+5", "1+2", "0"])[1]
    np.testing.assert_allclose(doses[2:4], [[0.3, 0.5], [0.3, 0]], rtol=1e-6)


def test_numbers_with_exponents_are_numbers():
    small = read(["a", "a", "DMSO"], [1e-5, 1e-4, 0], separator="-")[1]
    np.testing.assert_allclose(small, [[0.1], [1], [0]], rtol=1e-6)
    assert read(["a", "a", "DMSO"], [1e16, 2e16, 0])[1] == [[0.5], [1], [0]]
    assert read(["a", "b", "a+b", "DMSO"], ["1e+2", "2E-1", "5e+1+1e-1", "0"])[1][2] == [0.5, 0.5]


def test_advice_can_be_followed():
    with pytest.raises(SchemaError, match=r"say so: Doses\('dose', beside='drug', control='AAVS1'\)"):
        Schema(dose=Doses(beside="drug")).learn(cells(["a", "AAVS1"], [1, None]))
    with pytest.raises(SchemaError, match=r"here too: Doses\('dose', beside='drug', control=\['x', 'AAVS1'\]\)"):
        Schema(dose=Doses(beside="drug", control="x")).learn(cells(["a", "x", "AAVS1"], [1, 0, 0]))
    with pytest.raises(SchemaError, match=r"no column 'perturbation'.*Doses\('dose', beside=COLUMN\)"):
        Schema(dose=Doses()).learn(cells(["a"], [1]))


def test_a_pair_needs_two_doses():
    with pytest.raises(SchemaError, match="has 2 perturbations, 'a\\+b', and 1 doses, '1'.*such as '1\\+1'"):
        read(["a", "b", "a+b", "DMSO"], ["1", "1", "1", "0"])
    with pytest.raises(SchemaError, match="no column 'drugs'"):
        Schema(dose=Doses(beside="drugs")).learn(cells(["a"], [1]))
