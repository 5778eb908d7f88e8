"""gimVI: joining assays, the model of the genes that each measures, and imputation of the others."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.decisions import impute_genes
from fieldguide.inference import fit, join_modalities
from fieldguide.inference.step import Step

GENES = list("abcdefghij")
SETTINGS = {"n_latent": 3, "n_hidden": 16, "batch_size": 64, "max_epochs": 3, "progress": False}


def assay(genes, cells, seed):
    """Counts that follow two programs of genes."""
    rng = np.random.default_rng(seed)
    level = np.exp(rng.normal(size=(cells, 2)) @ np.random.default_rng(9).normal(size=(2, len(GENES))))
    columns = [GENES.index(g) for g in genes]
    counts = rng.poisson(1 + 4 * level[:, columns]).astype(np.float32)
    return anndata.AnnData(counts, var=pd.DataFrame(index=list(genes)))


@pytest.fixture(scope="module")
def pair():
    return {"rna": assay(GENES, 90, 0), "fish": assay("hcaedb", 70, 1)}


@pytest.fixture(scope="module")
def joined(pair):
    return join_modalities(pair)


@pytest.fixture(scope="module")
def fitted(joined):
    return fit("gimvi", joined, **SETTINGS)


def test_counts_stand_under_their_names_and_the_inputs_stay(pair, joined):
    before = pair["fish"].X.copy()
    for name, data in pair.items():
        rows = (joined.obs["modality"] == name).to_numpy()
        np.testing.assert_array_equal(joined[rows, data.var_names].X.toarray(), data.X)
        assert list(joined.var_names[joined.varm["measured"][name]]) == [g for g in GENES if g in data.var_names]
    np.testing.assert_array_equal(pair["fish"].X, before)
    assert "modality" not in pair["fish"].obs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(fish=assay("abc", 5, 0)[:, []].copy()), "shares no gene"),
        (lambda d: setattr(d["fish"], "var_names", list("uvwxyz")), "modality 'fish' shares no gene with 'rna'"),
        (lambda d: d["fish"].X.__setitem__((3, slice(None)), 0), "cell '3' has no count on the genes"),
        (lambda d: d["fish"].X.__setitem__(slice(None), 0), "no count at all on the 6 genes"),
        (lambda d: d["rna"].X.__setitem__((2, 1), np.nan), "modality 'rna': cell '2', gene 'b' is nan"),
        (lambda d: d["rna"].X.__setitem__((2, 1), 0.5), "gene 'b' is 0.5"),
        (lambda d: setattr(d["rna"], "var_names", ["a", *"abcdefghi"]), "gene 'a' appears twice"),
    ],
    ids=["empty", "foreign", "cell", "all", "nan", "half", "twice"],
)
def test_bad_input_is_named(pair, change, message):
    data = {name: one.copy() for name, one in pair.items()}
    change(data)
    with pytest.raises(ValueError, match=message):
        join_modalities(data)


def test_a_hidden_gene_must_exist(pair):
    with pytest.raises(ValueError, match="gene 'q'"):
        join_modalities(pair, hide={"fish": ["q"]})


def test_genes_may_be_in_another_order(joined, fitted):
    np.testing.assert_allclose(fitted.latent(joined[:, ::-1].copy()), fitted.latent(joined), rtol=1e-5, atol=1e-6)


def test_new_data_must_measure_what_the_training_data_did(pair, fitted):
    with pytest.raises(ValueError, match="gene 'd' was measured by modality 'fish'"):
        fitted.latent(join_modalities({"rna": pair["rna"], "fish": pair["fish"][:, list("hcaeb")]}))


def test_one_cell_of_a_modality_is_refused(pair):
    data = join_modalities({"rna": pair["rna"], "fish": pair["fish"][:1]})
    with pytest.raises(ValueError, match="modality 1 has 1 training cells"):
        fit("gimvi", data, validation=np.array([0, 1]), **SETTINGS)


def test_expression_is_a_distribution_over_the_measured_genes(joined, fitted):
    posterior = fitted.posterior(joined, particles=3)
    for _, _, values in posterior.chunks():
        torch.testing.assert_close((values["rho"] * values["measured"]).sum(-1), torch.ones(values["rho"].shape[:2]))


def test_unmeasured_genes_of_a_modality_get_no_gradient(joined, fitted):
    program, rows = fitted.program, np.flatnonzero(joined.obs["modality"] == "fish")
    torch.manual_seed(0)
    program.zero_grad()
    fitted.objective(Step(program, fitted.dataset.batch(rows))).backward()
    gradient = program.head_rho.weight.grad.abs().sum(-1)
    measured = torch.from_numpy(joined.varm["measured"]["fish"].to_numpy())
    assert (gradient[~measured] == 0).all() and (gradient[measured] > 0).all()
    program.zero_grad()


@pytest.mark.parametrize("head", ["model", "ridge", "blend"])
def test_imputation_covers_exactly_the_unmeasured_genes(joined, fitted, head):
    found = impute_genes(fitted.posterior(joined, particles=20), head=head)
    assert set(found.table.index) == set(GENES) - set("hcaedb")
    assert found.counts.shape == (70, 4) and np.isfinite(found.counts.to_numpy()).all()
    assert (found.low.to_numpy() <= found.high.to_numpy()).all()
    assert not joined.obsm.keys()


def test_nothing_to_impute_is_said(pair):
    data = join_modalities({"rna": pair["rna"], "other": assay(GENES, 60, 3)})
    with pytest.raises(ValueError):
        impute_genes(fit("gimvi", data, **SETTINGS).posterior(particles=5))
