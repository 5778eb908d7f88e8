"""SCBD: the losses it was published with, what it makes of coloured digits, and what it says of bad input."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
import torch.nn.functional as F

import fieldguide.inference as fi
from fieldguide.catalog import get
from fieldguide.catalog.data.screened_images import ops_sim
from fieldguide.inference.conformance import check

TINY = {"widths": (4, 8), "n_latent": 6}
QUICK = {"max_epochs": 3, "progress": False, "device": "cpu", "seed": 0}


def tiny(seed: int = 0, cells: int = 48, labels: int = 3, environments: int = 2, size: int = 8) -> anndata.AnnData:
    """Squares whose place says the label, and whose brightness the environment."""
    rng = np.random.default_rng(seed)
    y, e = np.arange(cells) % labels, rng.integers(0, environments, cells)
    e[:environments] = np.arange(environments)
    images = rng.integers(0, 30, (cells, 2, size, size)).astype(np.uint8)
    for i in range(cells):
        images[i, :, 2 * y[i] : 2 * y[i] + 2, 2:6] += np.uint8(80 + 100 * e[i] // environments)
    obs = pd.DataFrame({"label": [f"y{k}" for k in y], "environment": [f"e{k}" for k in e]})
    obs.index = [f"cell{i}" for i in range(cells)]
    return anndata.AnnData(obs=obs, obsm={"image": images})


def batch_of(cells: int = 24, kinds: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    label, environment = torch.randint(0, 4, (cells,)), torch.arange(cells) % kinds
    return {
        "image": torch.rand(cells, 2, 8, 8),
        "label": label,
        "environment": environment,
        "index": torch.arange(cells),
    }


def published(program, batch, alpha: float, joint: bool) -> torch.Tensor:
    """The losses as published, in plain torch."""
    y, e = batch["label"], batch["environment"]
    n = len(y)

    def logs(z):
        scores = z @ z.T / 0.1
        return scores - torch.logsumexp(scores, 1, keepdim=True)

    def contrast(z, code):
        total, table = 0.0, logs(z)
        for i in range(n):
            partners = [j for j in range(n) if j != i and code[j] == code[i]]
            total = total - sum(table[i, j] for j in partners) / max(1, len(partners)) / n
        return total

    z = {s: F.normalize(program.encoder_head[s](program.encoder[s](batch["image"])), dim=-1) for s in ("z_c", "z_s")}
    loss = contrast(z["z_c"], y) + contrast(z["z_s"], y * 3 + e if joint else e)
    table, invariance = logs(z["z_c"]), 0.0
    for i in range(n):
        ours = sum(table[i, j] for j in range(n) if j != i and e[j] == e[i]) / n
        theirs = sum(table[i, j] for j in range(n) if e[j] != e[i]) / n
        invariance = invariance + abs(ours - theirs) / n
    return loss + alpha * invariance


@pytest.mark.parametrize("joint", [False, True])
def test_loss_and_gradients_are_the_published_ones(joint):
    torch.manual_seed(0)
    program = get("scbd").program(
        n_channels=2, image_size=8, n_label=4, n_environment=3, alpha=8.0, invariance="batch", itself=True,
        partners=0, spurious="both" if joint else "environment", **TINY,
    )  # fmt: skip
    batch = batch_of()
    step = fi.Step(program, batch)
    ours = fi.ELBO()(step)
    theirs = published(program, batch, 8.0, joint)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    of = [torch.autograd.grad(loss, list(program.parameters())) for loss in (ours, theirs)]
    for mine, wanted in zip(*of, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_a_cut_decoder_trains_no_encoder_and_a_joint_one_does():
    for decoder in ("cut", "joint"):
        torch.manual_seed(0)
        program = get("scbd").program(n_channels=2, image_size=8, n_label=4, n_environment=3, decoder=decoder, **TINY)
        weights = fi.Step(program, batch_of()).weights()
        trace = pyro.poutine.trace(program.guide).get_trace(batch_of())
        told = pyro.poutine.trace(pyro.poutine.replay(program.model, trace=trace)).get_trace(batch_of())
        image = told.nodes["image"]
        value = image["fn"].log_prob(image["value"]).mean()
        encoder = torch.autograd.grad(value, list(program.encoder.parameters()), allow_unused=True)
        reaches = any(g is not None and bool(g.abs().sum() > 0) for g in encoder)
        assert reaches == (decoder == "joint") and weights.log_w.shape == (1, 24)


@pytest.mark.slow
def test_it_conforms_in_every_form():
    data = tiny()
    for given in (
        {},
        {"decoder": "cut", "invariance": "count", "within": True},
        {"decoder": "joint", "likelihood": "bernoulli", "spurious": "both", "itself": True},
        {"stochastic": True, "invariance": "batch", "decoder": "joint"},
        {"alpha": 0.0, "augment": True, "partners": 0},
    ):
        assert check("scbd", data, **TINY, **given)["passed"].ne(False).all()


@pytest.mark.parametrize("stochastic", [False, True])
def test_bounds_of_several_draws_are_refused_by_name(stochastic):
    with pytest.raises(ValueError, match="scbd.*iwae|iwae.*scbd|IWAE.*scbd|scbd.*IWAE"):
        fi.fit("scbd", tiny(), objective="iwae", stochastic=stochastic, **TINY, **QUICK)


def test_new_images_need_neither_label_nor_environment_and_both_embeddings_are_unit_vectors(tmp_path):
    data = tiny()
    fitted = fi.fit("scbd", data, **TINY, **QUICK)
    new = data[:10].copy()
    new.obs = pd.DataFrame({"environment": ["elsewhere", np.nan, *["e0"] * 8]}, index=new.obs_names)
    for site in ("z_c", "z_s"):
        z = fitted.latent(new, site)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(z, fitted.latent(data, site)[:10], atol=1e-5)
    assert fitted.latent(new, "r_c").shape == (10, 8)
    fitted.save(tmp_path / "fit.pt")
    np.testing.assert_array_equal(fi.load(tmp_path / "fit.pt").latent(new), fitted.latent(new))


def test_what_remembers_has_the_candidates_of_a_larger_minibatch():
    """A memory that holds one half of a minibatch gives the other half the contrast that it has in the whole."""
    torch.manual_seed(0)
    made = {"n_channels": 2, "image_size": 8, "n_label": 4, "n_environment": 3, "alpha": 2.0, "partners": 0, **TINY}
    program = get("scbd").program(memory=12, **made)
    whole = batch_of()
    halves = [{k: v[part] for k, v in whole.items()} for part in (slice(12), slice(12, None))]
    program.eval()  # as they are: without the norm of a minibatch
    z = [program.encoder_head["z_c"](program.encoder["z_c"](h["image"])) for h in halves]
    z = [F.normalize(part, dim=-1) for part in z]
    program.memory["z_c"].push(z[1], halves[1]["label"], halves[1]["environment"])
    program.training = True
    together = program.contrasted(torch.cat(z), whole["label"], "z_s", whole["label"], whole["environment"])
    apart = program.contrasted(z[0], halves[0]["label"], "z_c", halves[0]["label"], halves[0]["environment"])
    torch.testing.assert_close(apart, together[:12])


def test_a_memory_and_a_captured_step_are_not_for_one_another():
    with pytest.warns(UserWarning, match="leave compile=True out, or memory=0"):
        fi.fit("scbd", tiny(), memory=16, compile=True, **TINY, **QUICK)


def test_the_invariance_comes_after_the_contrast_and_no_epoch_before_it_is_the_best():
    seen = []

    def look(program, row):
        seen.append((float(program.strength), program.unfinished()))

    fi.fit("scbd", tiny(), callbacks=[look], **TINY, **(QUICK | {"max_epochs": 10}))
    strengths = [s for s, _ in seen]
    assert strengths[:3] == [0, 0, 0] and strengths[6:] == [1] * 4 and strengths == sorted(strengths)
    assert [unfinished for _, unfinished in seen] == [s < 1 for s in strengths]


def test_a_collapse_is_said():
    with pytest.warns(UserWarning, match="z_c has collapsed"):
        fi.fit(
            "scbd",
            tiny(cells=96, environments=4),
            alpha=200.0,
            invariance="batch",
            **TINY,
            **(QUICK | {"max_epochs": 80, "validation": 0}),
        )


def test_independence_of_features_can_be_asked_of_kernels():
    rule = fi.hsic("r_c", "environment", bound="independent")
    fitted = fi.fit("scbd", tiny(), alpha=0.0, constraints=[rule], **TINY, **QUICK)
    assert any("hsic" in name for name in fitted.history.columns)


def test_the_environment_is_told_by_one_embedding_and_less_by_the_other():
    world = ops_sim(0, 2, 2, 0, 2, 60, 60, size=16, strength=3.0, penetrance=0.9, natural=0.3)
    places = {"label": "gene", "environment": "well", "image": fi.Images(standardise=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fi.fit("scbd", world.data, fields=places, alpha=2.0, **(QUICK | {"max_epochs": 12, "batch_size": 64}))
    from sklearn.linear_model import LogisticRegression

    well = world.data.obs["well"].astype(str).to_numpy()
    rows = np.arange(world.data.n_obs) % 2 == 0
    score = {}
    for site in ("z_c", "z_s"):
        z = fitted.latent(site=site)
        score[site] = LogisticRegression(max_iter=500).fit(z[rows], well[rows]).score(z[~rows], well[~rows])
    assert score["z_s"] > 0.9 > score["z_c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.obs.__setitem__("label", "y"), "one label"),
        (lambda d: d.obs.__setitem__("environment", "e"), "one environment"),
        (lambda d: d.obs.__setitem__("label", [None, *["y0", "y1"] * 23, "y0"]), "'cell0' is missing"),
    ],
)
def test_bad_input_is_named(change, message):
    data = tiny()
    change(data)
    with pytest.raises(ValueError, match=message):
        fi.fit("scbd", data, **TINY, **QUICK)


def test_labels_of_one_environment_and_of_one_cell_are_told():
    data = tiny()
    data.obs["environment"] = np.where(data.obs["label"] == "y0", "e0", data.obs["environment"])
    data.obs.loc["cell1", "label"] = "rare"
    with pytest.warns(UserWarning) as said:
        fi.fit("scbd", data, validation=0.0, **TINY, **QUICK)
    texts = [str(w.message) for w in said]
    assert any("1 of 4 labels are in one environment only" in t and "'y0'" in t for t in texts)
    assert any("1 of 4 labels are on one cell each" in t and "'rare'" in t for t in texts)


def test_one_partner_is_none():
    with pytest.raises(ValueError, match="partners=1: an anchor needs another"):
        fi.fit("scbd", tiny(), partners=1, **TINY, **QUICK)
