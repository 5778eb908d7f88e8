"""Every number that a constructor of the catalog takes is checked by name; what NumPy gave can be saved."""

import inspect
import types
import typing
from importlib.metadata import EntryPoint

import numpy as np
import pandas as pd
import pytest

import fieldguide.inference as fi
from fieldguide.catalog import get
from fieldguide.catalog.data.assays import two_assays
from fieldguide.inference import entry as registry
from fieldguide.inference.checks.ranges import Range, Share, Size, checked
from fieldguide.inference.entry import all_entries, find

SIZES = {
    **{"ppca": {"n_features": 4}, "scvi": {"n_genes": 4}, "gimvi": {"n_genes": 4, "n_modality": 2}},
    **{"m1m2": {"n_features": 4, "n_labels": 2}, "mvae": {"n_labels": 2, "n_features": 4}},
    **{"hcv": {"n_genes": 4}, "incentives": {"n_features": 4, "n_level": 2}, "nodags": {"n_features": 4}},
    **{"svae": {"n_genes": 4, "n_perturbation": 3}, "comparative": {"n_genes": 4, "n_group": 2, "n_background": 1}},
    "fcr": {"n_genes": 4, "n_context": 2, "n_perturbation": 3},
    **{"dcdfg": {"n_features": 4}, "poxm": {"n_features": 4, "n_actions": 3}, "scbd": {"n_label": 3}},
    **{"image_ivae": {"n_label": 3}, "grape_vi": {"n_label": 3}, "grape": {"n_label": 3}},
}
NO_NUMBERS = [True, "a", "3", float("nan"), float("inf"), [1], 1j]


def kinds(program):
    """Each parameter that is a number or a flag: its type and its range."""
    for name, parameter in inspect.signature(program).parameters.items():
        said = parameter.annotation
        if typing.get_origin(said) in (typing.Union, types.UnionType):
            said = next(part for part in typing.get_args(said) if part is not type(None))
        parts = typing.get_args(said)
        limits = next((part for part in parts if isinstance(part, Range)), Range())
        kind = parts[0] if parts and typing.get_origin(said) is typing.Annotated else said
        if kind in (int, float, bool):
            yield name, kind, limits


def wrong_values(kind, limits):
    if kind is bool:
        return [1, "yes", None]
    values = [*NO_NUMBERS, *([1.5] if kind is int else [])]
    low = limits.above if limits.above is not None else None if limits.at_least is None else limits.at_least - 1
    high = limits.below if limits.below is not None else None if limits.at_most is None else limits.at_most + 1
    return values + [kind(v) for v in (low, high) if v is not None]


CASES = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{value}")
    for name in SIZES
    for argument, kind, limits in kinds(get(name).program)
    for value in wrong_values(kind, limits)
]


@pytest.mark.parametrize(("name", "argument", "value"), CASES)
def test_a_number_that_cannot_be_is_an_error_with_the_name_of_the_argument(name, argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"^{argument} must be"):
        get(name).program(**(SIZES[name] | {argument: value}))


def test_every_model_is_here_and_says_what_its_numbers_may_be():
    assert set(SIZES) == set(all_entries())
    for name in SIZES:
        unlimited = [a for a, kind, limits in kinds(get(name).program) if kind is not bool and limits == Range()]
        assert set(unlimited) <= {"n_features", "initial", "order", "settle"}, "these are checked within, with the rest"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gimvi", {"likelihood": ["nb"] * 3}, "likelihood names 3 for 2 modalities: one each, or one for all"),
        ("gimvi", {"library": ["latent"] * 3}, "library names 3 for 2 modalities"),
        ("gimvi", {"library": "foo"}, "library must be one of .* not 'foo'"),
        ("gimvi", {"measured": "a"}, "field 'measured': it holds text"),
        ("gimvi", {"measured": [[1, 1], [1]]}, "field 'measured': its rows differ in length"),
        ("mvae", {"initial": 0.5}, "initial must be between 1/2"),
        ("mvae", {"initial": 1}, "initial must be between 1/2"),
        ("dcdfg", {"prior": 0.5, "masks": None}, "prior needs masks that cells share"),
        ("dcdfg", {"n_features": 1}, "a graph needs at least two genes, not 1"),
        ("nodags", {"n_features": 1}, "a graph needs at least two genes, not 1"),
        ("dcdfg", {"order": 0}, "order must be a number in .0, 1., not 0"),
        ("dcdfg", {"settle": 1.5}, "settle must be a number in .0, 1., not 1.5"),
        ("scvi", {"likelihood": "foo"}, "likelihood must be one of .* not 'foo'"),
        ("scvi", {"guide": "foo"}, "guide must be one of .* not 'foo'"),
    ],
)
def test_arguments_that_cannot_be(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        get(name).program(**(SIZES[name] | arguments))


def test_a_check_by_annotations_leaves_the_rest_alone():
    @checked
    def made(size: Size, share: Share | None = None, *, name: str = "a", rest: object = None, flag: bool = False):
        return size, share, name, rest, flag

    assert made(np.int64(3), np.float32(0.5), name="b", rest=[1], flag=np.True_) == (3, 0.5, "b", [1], True)
    assert [type(v) for v in made(np.int64(3), np.float32(0.5), flag=np.True_)] == [int, float, str, type(None), bool]
    assert made(size=1, share=None) == (1, None, "a", None, False)
    with pytest.raises(TypeError, match="missing a required argument: 'size'|required positional argument: 'size'"):
        made()


# ---- what the data imply -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_genes": 3}, "n_genes is 765 by the field 'counts' of the data, not 3"),
        ({"n_genes": "a"}, "n_genes is 765 by the field 'counts' of the data, not 'a'"),
        ({"n_batch": 1}, "n_batch is 2 by the field 'batch' of the data, not 1"),
        ({"n_labels": 3}, "n_labels=3 is given, but the data have no field 'labels'"),
    ],
    ids=str,
)
def test_a_size_that_contradicts_the_data(pbmc, arguments, message):
    pbmc.obs["batch"] = np.where(np.arange(700) % 2, "a", "b")
    with pytest.raises(ValueError, match=message):
        fi.fit("scvi", pbmc, max_epochs=1, progress=False, **arguments)


def test_categories_may_be_more_than_the_data_have():
    data = {"x": np.random.default_rng(0).random((20, 3)), "labels": ["a", "b"] * 10}
    assert fi.fit("m1m2", data, n_labels=3, max_epochs=1, progress=False).program.n_labels == 3


def test_what_numpy_gave_can_be_saved(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 4)), columns=list("abcd"))
    fields = {"x": np.array(["b", "a"])}
    arguments = {"n_latent": np.int64(2), "guide": np.str_("mean_field")}
    fitted = fi.fit("ppca", frame, fields=fields, max_epochs=1, progress=False, **arguments)
    assert fitted.arguments == {"n_features": 2, "n_latent": 2, "guide": "mean_field"}
    assert type(fitted.arguments["n_latent"]) is int
    fitted.save(tmp_path / "fit")
    again = fi.load(tmp_path / "fit")
    np.testing.assert_array_equal(again.latent(frame), fitted.latent(frame))
    assert again.arguments == fitted.arguments


# ---- batches without training cells ----------------------------------------------------------------------------------
def test_a_batch_without_training_cells_has_the_library_of_all_of_them(pbmc):
    pbmc.obs["batch"] = ["new"] * 5 + ["a", "b"] * 347 + ["a"]
    fitted = fi.fit("scvi", pbmc, library="latent", validation=np.arange(5), max_epochs=1, n_hidden=4, progress=False)
    logs = np.log(np.asarray(pbmc.X.sum(1)).ravel())[5:]
    found = fitted.program.library_prior.numpy()
    assert fitted.schema is not None and fitted.schema.states["batch"]["categories"] == ["a", "b", "new"]
    np.testing.assert_allclose(found[2], [logs.mean(), logs.std(ddof=1)], rtol=1e-5)
    np.testing.assert_allclose(found[1], [logs[1::2].mean(), logs[1::2].std(ddof=1)], rtol=1e-5)


def test_a_batch_of_an_assay_without_training_cells_is_like_the_others_of_its_kind():
    rna, fish = two_assays(n_genes=12, n_measured=8, cells=(60, 40), n_latent=2)
    rna.obs["lab"] = ["new"] * 4 + ["one"] * (len(rna) - 4)
    fish.obs["lab"] = "one"
    both = fi.join_modalities({"rna": rna, "fish": fish}, batch="lab")
    fitted = fi.fit("gimvi", both, validation=np.arange(4), max_epochs=1, n_hidden=4, progress=False)
    program = fitted.program
    categories = fitted.schema.states["batch"]["categories"] if fitted.schema else []
    logs = np.log(np.asarray(both.X.sum(1)).ravel())[4 : len(rna)]
    found = program.library_prior[categories.index("rna: new")].numpy()
    np.testing.assert_allclose(found, [logs.mean(), logs.std(ddof=1)], rtol=1e-5)
    assert program.row_modality[categories.index("rna: new")].tolist() == [0, 0], "its dispersions were never trained"


# ---- plug-ins --------------------------------------------------------------------------------------------------------
def test_a_plugin_that_cannot_be_imported_is_left_out_with_its_name(monkeypatch):
    class Distribution:
        name = "broken-models"

    broken = EntryPoint("theirs", "no_such_module_of_theirs", "fieldguide.catalog")
    vars(broken)["dist"] = Distribution()
    known = registry.entry_points(group="fieldguide.catalog")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken, *known])
    monkeypatch.setattr(registry, "_broken", {})
    with pytest.warns(UserWarning, match=r"'theirs' of the package broken-models \(no_such.*cannot be imported"):
        assert "scvi" in all_entries()
    assert find("scvi").name == "scvi", "and it is said once"
    with pytest.raises(KeyError, match="not counting those of broken-models, which cannot be imported"):
        find("theirs")
