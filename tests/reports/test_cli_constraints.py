"""Constraints and settings of fields on the command line."""

import anndata
import numpy as np
import pandas as pd
import pytest

from fieldguide import inference
from fieldguide.arguments import constraints_of
from fieldguide.cli import main
from fieldguide.inference import AugmentedLagrangian, hsic


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], None),
        (["none"], ()),
        (["hsic(z,n_genes)"], (hsic("z", "n_genes"),)),
        ([" hsic( z , n genes, weight=3e2 ) "], (hsic("z", "n genes", weight=300.0),)),
        (["hsic(z,u,s,estimator=v)", "hsic(z,s)"], (hsic("z", "u", "s", estimator="v"), hsic("z", "s"))),
        (
            ["hsic(z,s,given=type,bound=independent,rule=lagrangian)"],
            (hsic("z", "s", given="type", bound="independent", rule=AugmentedLagrangian()),),
        ),
        (["hsic(z,s,bound=0.001)"], (hsic("z", "s", bound=0.001),)),
    ],
    ids=["nothing", "none", "plain", "spaces", "two", "all", "bound"],
)
def test_words_are_the_constraints_of_the_api(words, wanted):
    assert constraints_of(words) == wanted


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mmd(z,s)", r"--constraint takes hsic\(SITE,COLUMN,...\) or none, not 'mmd\(z,s\)'"),
        ("hsic(z,s", "--constraint takes hsic"),
        ("hsic(z,,s)", "names first, then settings"),
        ("hsic()", "names first, then settings"),
        ("hsic(weight=1,z,s)", "names first, then settings"),
        ("hsic(z,s,wight=1)", "'wight' is none of weight, bound, given, estimator, rule"),
        ("hsic(z,s,weight=1,weight=2)", "'weight' is given twice"),
        ("hsic(z,s,weight=)", "takes KEY=VALUE"),
        ("hsic(z,s,weight=big)", "weight must be a number, not 'big'"),
        ("hsic(z,s,bound=soon)", "bound must be a number or 'independent'"),
        ("hsic(z,s,rule=law)", "rule must be one of penalty, lagrangian"),
        ("hsic(z)", "two different variables"),
        ("hsic(z,s,estimator=w)", "estimator must be one of"),
    ],
)
def test_what_is_wrong_with_a_word_is_named(word, message):
    with pytest.raises(ValueError, match=message):
        constraints_of([word])


def test_fit_takes_constraints_and_leaves_out_those_of_the_entry(pbmc, tmp_path, capsys):
    file = tmp_path / "cells.h5ad"
    cells = pbmc[:120, pbmc.X[:120].toarray().sum(0) > 100].copy()
    cells.write_h5ad(file)
    common = ["--max-epochs", "1", "--model", "n_hidden=8", "--output", str(tmp_path / "a")]
    assert main(["fit", "scvi", str(file), *common, "--constraint", "hsic(z,n_genes,weight=9)"]) == 0
    assert inference.load(tmp_path / "a").constraints == (hsic("z", "n_genes", weight=9.0),)
    fields = ["--fields", "quality=percent_mito,n_genes"]
    assert main(["fit", "hcv", str(file), *common, *fields]) == 0
    assert [c.name for c in inference.load(tmp_path / "a").constraints] == ["hsic_z_u"]
    assert main(["fit", "hcv", str(file), *common, *fields, "--constraint", "none"]) == 0
    assert inference.load(tmp_path / "a").constraints == ()
    capsys.readouterr()
    assert main(["fit", "scvi", str(file), *common, "--constraint", "hsic(z,depth)"]) == 1
    assert "'depth' is neither a site of SCVI" in capsys.readouterr().err


def test_settings_of_a_field_stand_in_brackets(tmp_path, capsys):
    obs = pd.DataFrame(
        {"drug": ["water", "A", "A+B", "B"] * 5, "line": ["u", "v"] * 10, "dose": ["0", "1", "1+2", "2"] * 5},
        index=[f"c{i}" for i in range(20)],
    )
    rng = np.random.default_rng(0)
    file, out = tmp_path / "cells.h5ad", tmp_path / "fit"
    anndata.AnnData(rng.poisson(5, (20, 4)).astype(np.float32), obs=obs).write_h5ad(file)
    common = ["--max-epochs", "1", "--model", "n_hidden=4", "--output", str(out), "--fields"]
    common += ["context=line"]
    drug, dose = "perturbation=drug(control=water)", "dose=dose(beside=drug,control=water)"
    assert main(["fit", "fcr", str(file), *common, drug, dose]) == 0
    schema = inference.load(out).schema
    assert schema.places["perturbation"] == "drug" and schema.states["perturbation"]["control"] == ["water"]
    assert schema.states["dose"]["beside"] == "drug" and schema.states["dose"]["largest"] == {"A": 1, "B": 2}
    assert main(["fit", "fcr", str(file), *common, drug, "counts=none", "values=X"]) == 0
    assert "counts" not in inference.load(out).schema.places
    both = "perturbation=drug(control=water,control=A)"
    assert main(["fit", "fcr", str(file), *common, both]) == 0
    assert inference.load(out).schema.states["perturbation"]["control"] == ["water", "A"]
    capsys.readouterr()
    for words, message in (
        ("perturbation=drug(kontrol=water)", "perturbation has no setting 'kontrol' (Perturbations); it has control"),
        ("context=line(control=u)", "context has no setting 'control' (Category); it has none"),
        ("perturbation=drug(needs_control=yes)", "needs_control of perturbation must be True or False, not 'yes'"),
        ("size_factor=none", ""),
    ):
        usual = {"context": "context=line", "perturbation": drug}
        usual[words.partition("=")[0]] = words
        code = main(["fit", "fcr", str(file), *common[:-1], *usual.values()])
        assert code == (1 if message else 0) and message in capsys.readouterr().err
