"""gimVI: joining assays, the model of the genes that each measures, and imputation of the others."""

import copy
from dataclasses import replace
from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from scipy import stats
from sklearn.kernel_ridge import KernelRidge

from fieldguide.catalog import get
from fieldguide.catalog.data.assays import two_assays
from fieldguide.catalog.gimvi import GIMVI
from fieldguide.cli import main
from fieldguide.decisions import impute_genes
from fieldguide.decisions.imputation.assays import Assays, withhold
from fieldguide.decisions.imputation.regression import GAMMA, PENALTY, across, expected_log, kernel, spearman
from fieldguide.inference import ELBO, SchemaError, fit, join_modalities, weigh
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


@pytest.mark.parametrize("head", ["model", "kernel", "blend"])
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


def one_batch(joined, fitted, name, genes=()):
    """A minibatch of one modality, with genes withheld."""
    batch = fitted.dataset.batch(np.flatnonzero(joined.obs["modality"] == name))
    withheld = torch.zeros_like(batch["counts"])
    withheld[:, [joined.var_names.get_loc(g) for g in genes]] = 1
    return batch | {"withheld": withheld}


def test_a_withheld_gene_is_a_gene_that_was_not_measured(pair, joined, fitted):
    batch = one_batch(joined, fitted, "fish", "h")
    found = weigh(fitted.program, batch, 4)
    blank = dict(batch, counts=batch["counts"].clone())
    blank["counts"][:, joined.var_names.get_loc("h")] = 77
    torch.manual_seed(0)
    first = weigh(fitted.program, batch, 4)
    torch.manual_seed(0)
    second = weigh(fitted.program, blank, 4)
    torch.testing.assert_close(first.log_w, second.log_w)
    torch.testing.assert_close(first.draws["rho"], second.draws["rho"])
    assert not found.draws["measured"][..., joined.var_names.get_loc("h")].any()


def test_hiding_a_gene_renormalises_the_likelihood_of_the_others(joined, fitted):
    program, z = fitted.program, torch.zeros(1, 70, 3)
    values = {}
    for genes in ("", "h"):
        batch = one_batch(joined, fitted, "fish", genes)
        trace = poutine.trace(poutine.condition(program.model, {"z": z[0]})).get_trace(batch)
        values[genes] = trace.nodes["rho"]["value"], trace.nodes["counts"]["fn"]
    kept = joined.var_names.get_indexer(list("caedb"))
    rho, fewer = values[""][0][:, kept], values["h"][0][:, kept]
    torch.testing.assert_close(fewer, rho / (1 - values[""][0][:, [joined.var_names.get_loc("h")]]))


def test_expected_counts_of_the_measured_genes_sum_to_the_observed_total(joined, fitted):
    rows = np.flatnonzero(joined.obs["modality"] == "fish")
    for _, _, values in fitted.posterior(particles=2).chunks(rows):
        sums = (values["rho"] * values["measured"]).sum(-1) * values["log_library"].exp()
        torch.testing.assert_close(sums[0], torch.as_tensor(joined.X[rows].toarray().sum(1))[: sums.shape[1]])


def test_a_common_guide_reads_only_what_all_measure(joined, fitted):
    batch = one_batch(joined, fitted, "rna")
    other = dict(batch, counts=batch["counts"].clone())
    other["counts"][:, joined.var_names.get_indexer(list("fgij"))] += 9
    own = GIMVI(10, 2, joined.varm["measured"].to_numpy().T.astype(int).tolist(), encoder="by_modality")
    for program, same in ((fitted.program, True), (own.eval(), False)):
        means = [program.encode(program.seen(b), b).mean for b in (batch, other)]
        assert torch.allclose(*means) == same


def test_without_mixing_the_loss_is_that_of_two_models_with_one_decoder(joined):
    masks = joined.varm["measured"].to_numpy().T.astype(int).tolist()
    arguments = {"measured": masks, "n_latent": 3, "n_hidden": 8, "dropout": 0.0, "masking": 0.0, "efficiency": 0.0}
    torch.manual_seed(0)
    program = GIMVI(10, 2, kappa=0, balance=False, library="observed", **arguments)
    assert not hasattr(program, "critic") and set(program.groups()) == {"theta", "phi"}
    rows = np.flatnonzero(joined.obs["modality"] == "fish")
    counts = torch.as_tensor(joined.X.toarray())
    codes = torch.as_tensor(joined.obs["modality"].cat.codes.to_numpy().astype(np.int64))
    both = {"counts": counts, "modality": codes, "index": torch.arange(len(counts))}
    program.prepare([both])
    parts = [{k: v[codes == m] for k, v in both.items()} for m in (0, 1)]
    exact = [ELBO(kl="analytic").per_cell(weights_at_mean(program, part)).sum() for part in (both, *parts)]
    torch.testing.assert_close(exact[0], exact[1] + exact[2])
    assert len(rows) == len(parts[1]["counts"])


def weights_at_mean(program, batch):
    """Weights with the guide's mean in place of a draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.distributions.Normal,
            "rsample",
            lambda self, shape=(): self.loc.expand(torch.Size(shape) + self.loc.shape),
        )
        return weigh(program, batch, 1, "analytic")


def test_permuting_genes_permutes_what_is_imputed(joined, fitted):
    order = np.random.default_rng(0).permutation(10)
    one = impute_genes(fitted.posterior(joined, particles=20), draws=20)
    two = impute_genes(fitted.posterior(joined[:, order].copy(), particles=20), genes=list("jfgi"), draws=20)
    np.testing.assert_allclose(one.counts[list("jfgi")], two.counts, rtol=1e-4)


@given(st.floats(0.01, 40), st.floats(0.05, 100), st.floats(0.1, 50))
def test_the_mean_of_a_normalised_count_is_that_of_many_draws(mean, theta, scale):
    law = stats.nbinom(theta, theta / (theta + mean))
    k = np.arange(int(law.isf(1e-12)) + 2)
    exact = (law.pmf(k) * np.log1p(scale * k)).sum()
    one = np.ones((1, 1))
    assert expected_log(mean * one, theta * one, np.array([scale])).item() == pytest.approx(exact, rel=1e-3, abs=1e-6)


def test_a_program_that_cannot_withhold_genes_is_refused(joined, fitted):
    posterior = fitted.posterior(particles=3)
    posterior.program = copy.deepcopy(posterior.program)
    posterior.program.mask = lambda batch: posterior.program.measured[batch["modality"]]
    posterior.proposal = partial(weigh, posterior.program)
    with pytest.raises(ValueError, match="cannot withhold genes"):
        withhold(posterior, np.array([0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "wide"}, "encoder must be one of common, by_modality, not 'wide'"),
        ({"masking": 1.0}, "masking must be a number in .0, 1., not 1"),
        ({"kappa": -1.0}, "kappa must be a number of at least 0, not -1"),
        ({"likelihood": ()}, "likelihood names nothing"),
        ({"mixing": "gan"}, "mixing must be one of critic, mmd, none, not 'gan'"),
        ({"measured": [[1, 1, 0], [0, 0, 1]]}, "no gene is measured by all modalities: encoder='by_modality'"),
        ({"measured": [[1, 1, 0]]}, r"measured is \(1, 3\), not 2 modalities x 3 genes"),
    ],
    ids=["encoder", "masking", "kappa", "likelihood", "mixing", "nothing shared", "shape"],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GIMVI(3, 2, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "forest"}, "head must be one of blend, model, kernel, not 'forest'"),
        ({"estimator": "mean"}, "estimator must be one of snis, plugin, not 'mean'"),
        ({"interval": 1.0}, "interval must be a number in .0, 1., not 1"),
        ({"draws": 1}, "draws must be a whole number of at least 2, not 1"),
        ({"efficiency": -1.0}, "efficiency must be (a number of )?at least 0, not -1"),
        ({"modality": "atac"}, "no modality 'atac'; there are rna, fish"),
        ({"modality": "rna"}, "'rna' is the reference"),
        ({"genes": ["z"]}, "gene 'z' is not in the model"),
        ({"genes": ["a"]}, "gene 'a' was measured by 'fish': nothing to impute"),
        ({"genes": []}, "genes names no gene"),
    ],
    ids=["head", "estimator", "interval", "draws", "efficiency", "modality", "reference", "gene", "measured", "none"],
)
def test_wrong_questions_are_named(fitted, arguments, message):
    with pytest.raises(ValueError, match=message):
        impute_genes(fitted.posterior(particles=3), **arguments)


def test_data_that_was_not_joined_is_refused_with_what_to_do(pair):
    with pytest.raises(SchemaError, match="join the assays first"):
        fit("gimvi", pair["rna"], **SETTINGS)


def test_what_is_imputed_can_be_kept(pair, joined, fitted):
    found = impute_genes(fitted.posterior(joined, particles=5), draws=10)
    fish = pair["fish"].copy()
    found.write(fish)
    assert list(fish.obsm["imputed_normalised"].columns) == list(found.table.index)
    kept = found.to_anndata()
    np.testing.assert_array_equal(kept.layers["low"], found.low)
    assert list(kept.obs_names) == list(found.counts.index) and "trust" in kept.var
    for cells in (pair["fish"][::-1].copy(), joined[list(found.counts.index[::-1])].copy()):
        found.write(cells)
        table = cells.obsm["imputed_low"]
        assert table.index.equals(cells.obs_names)
        np.testing.assert_array_equal(table.iloc[::-1], found.low)
    for cells in (fish[:-1].copy(), fish[[0, *range(fish.n_obs - 1)]].copy(), pair["rna"].copy()):
        with pytest.raises(ValueError, match=f"{found.counts.shape[0]} were imputed; the first that differs: '"):
            found.write(cells)
    assert len(found.plot().axes) == 2


def test_the_kernel_regression_is_kernel_ridge_where_every_cell_is_a_landmark():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(60, 7)), rng.normal(size=(20, 7))
    y = np.column_stack([np.sin(x[:, 0] * x[:, 1]), x[:, 2] ** 2])
    exact = KernelRidge(kernel="rbf", gamma=GAMMA / 7, alpha=PENALTY).fit(x, y - y.mean(0)).predict(new)
    found = kernel(x, y, new)
    assert found.shape == (20, 2)
    assert (spearman(found, exact) > 0.99).all() and np.abs(found - exact - y.mean(0)).max() < 0.1


def test_the_blends_weight_is_the_one_that_does_best_on_genes_left_out(joined, fitted):
    posterior = fitted.posterior(joined, particles=20)
    found = impute_genes(posterior, draws=10)
    scores = found.settings["scores"]
    assert 0 < found.settings["weight"] <= 0.5 and scores["blend"].mean() >= scores["kernel"].mean() - 0.05
    quick = impute_genes(posterior, draws=10, trust=False)
    assert quick.table["trust"].isna().all() and quick.settings["weight"] == 0.3
    ends = {h: impute_genes(posterior, head=h, draws=10, trust=False).normalised.rank() for h in ("model", "kernel")}
    assert not ends["model"].equals(ends["kernel"])
    with pytest.raises(ValueError, match="impute with trust=True"):
        quick.plot()


def test_left_out_genes_are_not_looked_at(joined, fitted):
    case = Assays(fitted.posterior(joined, particles=3), None, None)
    reference, target = case.counts
    other = target.copy()
    other[:, 2] = 50 - other[:, 2]
    np.testing.assert_array_equal(*(across(reference, t, np.array([2])) for t in (target, other)))


def test_two_assays_have_the_truth_beside_them():
    rna, fish = two_assays(n_genes=12, n_measured=8, cells=(4000, 300), n_latent=2, clusters=1, totals=(5000, 100))
    assert list(fish.var_names) == list(rna.var_names[:8]) and list(fish.obsm["truth"]) == list(rna.var_names[8:])
    share = rna.X / rna.X[:, :8].sum(1, keepdims=True)
    truth = fish.obsm["truth"].to_numpy().mean(0)
    assert np.corrcoef(np.log(share[:, 8:].mean(0)), np.log(truth))[0, 1] > 0.9
    with pytest.raises(ValueError, match="n_measured must be between 1 and 11"):
        two_assays(n_genes=12, n_measured=12)


def test_an_entry_may_say_how_it_is_fitted(joined):
    entry = get("gimvi")
    assert entry.defaults.learning_rate == 0.01
    short = {k: v for k, v in SETTINGS.items() if k != "max_epochs"} | {"max_epochs": 1}
    runs = [
        fit("gimvi", joined, **short, **rate).history["validation"].iloc[0]
        for rate in ({}, {"learning_rate": 0.01}, {"learning_rate": 0.001})
    ]
    assert runs[0] == runs[1] != runs[2]
    slow = fit(replace(entry, defaults={"max_epochs": 1}), joined, **SETTINGS | {"max_epochs": 1})
    assert slow.history["validation"].iloc[0] == runs[2]


@pytest.mark.parametrize("mixing", ["critic", "mmd", "none"])
def test_mixing_acts_on_the_guide_alone(joined, mixing):
    torch.manual_seed(0)
    masks = joined.varm["measured"].to_numpy().T.astype(int).tolist()
    program = GIMVI(10, 2, masks, n_latent=3, n_hidden=8, mixing=mixing, efficiency=0.0).train()
    counts = torch.as_tensor(joined.X.toarray())
    codes = torch.as_tensor(joined.obs["modality"].cat.codes.to_numpy().astype(np.int64))
    batch = {"counts": counts, "modality": codes, "index": torch.arange(len(counts))}
    program.prepare([batch])
    found = program.training_loss(Step(program, batch), lambda step: program.origin.sum())
    losses = found if isinstance(found, dict) else {"theta": found, "phi": found}
    assert set(losses) == {"theta", "phi", "critic"} if mixing == "critic" else {"theta", "phi"} == set(losses)
    assert not losses["theta"].requires_grad and losses["phi"].requires_grad == (mixing != "none")
    if mixing == "critic":
        told = torch.autograd.grad(losses["critic"], list(program.encoder_z.parameters()), allow_unused=True)
        assert told == (None, None), "the critic's own loss does not reach the guide"


def test_join_and_impute_on_the_command_line(pair, tmp_path, capsys):
    for name, data in pair.items():
        data.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [f"{name}={tmp_path / name}.h5ad" for name in pair]
    out = [str(tmp_path / n) for n in ("joined.h5ad", "fit.safetensors", "imputed.h5ad")]
    assert main(["join", *files, "--output", out[0]]) == 0
    assert "fish: 70 cells, 6 of 10 genes" in capsys.readouterr().out
    assert main(["fit", "gimvi", out[0], "--output", out[1], "--max-epochs", "2", "--model", "n_hidden=8"]) == 0
    assert main(["impute", out[1], out[0], "--output", out[2], "--draws", "5"]) == 0
    assert "4 genes in 70 cells of fish" in capsys.readouterr().out
    found = anndata.read_h5ad(out[2])
    layers = set(found.layers) - {None}  # from 0.13 on, anndata lists X among them under None
    assert found.shape == (70, 4) and layers == {"normalised", "low", "high"}
    assert main(["fit", "gimvi", str(tmp_path / "rna.h5ad"), "--output", out[1]]) == 1
    assert "join the assays first" in capsys.readouterr().err
    assert main(["join", str(tmp_path / "rna.h5ad")]) == 2
    assert "join takes NAME=FILE" in capsys.readouterr().err
