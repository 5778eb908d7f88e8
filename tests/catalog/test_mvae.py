"""M-VAE against sums by hand and closed forms: the enumerated bound, its classification terms, its noise matrices."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.catalog.data.noise import annotate, confusion_matrix, noisy_clusters, pair_noise, uniform_noise
from fieldguide.catalog.mvae import MVAE
from fieldguide.decisions import class_probabilities, noise_matrix, relabel, suspects, true_labels
from fieldguide.inference import ELBO, Annotations, Schema, Step, fit, weigh
from fieldguide.inference.conformance import check

SMALL = {"n_hidden": 8, "n_latent": 3, "n_second": 2}
X = np.random.default_rng(0).random((60, 5))
CODES = torch.tensor([[0], [2], [-1], [1], [2], [-1]])


def program(form="C", annotators=1, **arguments):
    torch.manual_seed(0)
    made = MVAE(3, annotators, n_features=5, form=form, dropout=0.0, **SMALL, **arguments).double()
    with torch.no_grad():
        made.noise_logits.add_(0.05 * torch.randn_like(made.noise_logits))
    return made


def batch(codes=CODES):
    return {"x": torch.tensor(X[: len(codes)]), "labels": codes, "index": torch.arange(len(codes))}


def by_hand(made, data, draws, corrected):
    """log p(x|z) - log q(z|x) + sum_c r(c) [log p(z|u_c, c) + log p(u_c) - log q(u_c) + log pi + log T - log r]."""
    z, u = draws["z"][0], draws["u"]
    log_q = torch.log_softmax(made.encoder_c(z), -1)
    log_noise, total = made.log_noise(), []
    for n in range(len(z)):
        code = int(data["labels"][n, 0])
        given = log_noise[0][:, code] if code >= 0 else torch.zeros(3).double()
        r = torch.log_softmax(log_q[n] + given, -1) if corrected else log_q[n]
        value = made.observe(z[n], data).log_prob(data["x"])[n] - made.encoder_z(data["x"]).log_prob(z)[n]
        for c in range(3):
            one = torch.eye(3).double()[c]
            draw = u[c, 0, n]
            inner = made.prior_z(torch.cat((draw, one))).log_prob(z[n])
            inner = inner + torch.distributions.Normal(0.0, 1.0).log_prob(draw).sum()
            inner = inner - made.encoder_u(torch.cat((z[n], one))).log_prob(draw)
            value = value + r[c].exp() * (inner - np.log(3) + given[c] - r[c])
        total.append(value)
    return torch.stack(total)


@pytest.mark.parametrize("form", ["A", "C"])
def test_the_enumerated_elbo_is_the_sum_over_classes_by_hand(form, monkeypatch):
    made, data = program(form).train(), batch()
    monkeypatch.setattr("fieldguide.inference.weights.weigh.kl_divergence", _none)
    torch.manual_seed(1)
    weights = weigh(made, data, 1, "analytic")
    found = by_hand(made, data, weights.traced, form == "C")
    torch.testing.assert_close(weights.log_w[0], found, rtol=1e-10, atol=1e-10)


def test_the_summed_weight_is_the_logsumexp_over_classes():
    made, data = program(), batch()
    torch.manual_seed(1)
    weights = weigh(made.eval(), data, 1)
    z, u, parts = weights.traced["z"][0], weights.traced["u"][:, 0], []
    for c in range(3):
        one = torch.eye(3).double()[c].expand(len(z), 3)
        term = made.prior_z(torch.cat((u[c], one), -1)).log_prob(z) - np.log(3)
        term = term + torch.distributions.Normal(0.0, 1.0).log_prob(u[c]).sum(-1)
        term = term - made.encoder_u(torch.cat((z, one), -1)).log_prob(u[c])
        parts.append(term + made.evidence(data, made.log_noise())[:, c])
    found = torch.logsumexp(torch.stack(parts), 0)
    found = found + made.observe(z, data).log_prob(data["x"]) - made.encoder_z(data["x"]).log_prob(z)
    torch.testing.assert_close(weights.log_w[0], found, rtol=1e-10, atol=1e-10)


def _none(*_):
    raise NotImplementedError


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_the_mixture_term_is_above_the_papers(seed, classes):
    rng = np.random.default_rng(seed)
    q, noise = rng.dirichlet(np.ones(classes)), rng.dirichlet(np.ones(classes), classes)
    a, b = (q * np.log(noise[:, 0])).sum(), np.log((q * noise[:, 0]).sum())
    made = MVAE(classes, n_features=5, speed=1.0, **SMALL).double()
    with torch.no_grad():
        made.noise_logits.copy_(torch.tensor(np.log(noise))[None])
    made.encoder_c = torch.nn.Linear(3, classes).double()
    with torch.no_grad():
        made.encoder_c.weight.zero_(), made.encoder_c.bias.copy_(torch.tensor(np.log(q)))
    data = batch(torch.zeros(1, 1, dtype=torch.long))
    for form, weight, wanted in (("B", 1.0, b), ("C", 1.0, b), ("A", 2.0, a)):
        made.form, made.weight = form, weight
        assert -float(made.classification(data).detach()) == pytest.approx(wanted, abs=2e-3)
    assert b >= a - 1e-12
    noise[:, 0] = 0.5
    assert (q * np.log(noise[:, 0])).sum() == pytest.approx(np.log((q * noise[:, 0]).sum()))


def test_fixture_of_symmetric_noise():
    q, noise = np.array([0.7, 0.2, 0.1]), uniform_noise(3, 0.3)
    made = program(initial=0.7)
    with torch.no_grad():
        made.noise_logits.copy_(torch.tensor(np.log(noise) / made.speed)[None])
    given = made.evidence(batch(CODES[:1]), made.log_noise()).detach()[0].numpy()
    assert (q * given).sum() == pytest.approx(-0.8188085, abs=1e-5)
    assert (q * given).sum() == pytest.approx(np.log(0.15) + 0.7 * np.log(0.7 / 0.15), abs=1e-5)
    assert np.log((q * np.exp(given)).sum()) == pytest.approx(-0.6254885, abs=1e-5)
    corrected = q * np.exp(given) / (q * np.exp(given)).sum()
    np.testing.assert_allclose(corrected, [0.9158879, 0.0560748, 0.0280374], atol=1e-5)


def test_without_noise_a_labelled_cell_has_the_bound_of_its_label(monkeypatch):
    made, data = program().train(), batch(CODES[[0, 1, 3]])
    monkeypatch.setattr(made, "log_noise", lambda: 1000.0 * (torch.eye(3).double() - 1)[None])
    monkeypatch.setattr("fieldguide.inference.weights.weigh.kl_divergence", _none)
    torch.manual_seed(1)
    weights = weigh(made, data, 1, "analytic")
    z, codes = weights.traced["z"][0], data["labels"][:, 0]
    u, one = weights.traced["u"][codes, 0, torch.arange(3)], torch.eye(3).double()[codes]
    wanted = made.observe(z, data).log_prob(data["x"]) - made.encoder_z(data["x"]).log_prob(z) - np.log(3)
    wanted = wanted + made.prior_z(torch.cat((u, one), -1)).log_prob(z)
    wanted = wanted + torch.distributions.Normal(0.0, 1.0).log_prob(u).sum(-1)
    wanted = wanted - made.encoder_u(torch.cat((z, one), -1)).log_prob(u)
    torch.testing.assert_close(weights.log_w[0], wanted, rtol=1e-10, atol=1e-10)


def test_gradients_of_the_noise_matrix():
    for form in "ABC":
        made = program(form, diagonal=0.0, weight=3.0).train()
        for codes, nothing in ((CODES, False), (torch.full((6, 1), -1), True)):
            loss = made.training_loss(Step(made, batch(codes)), ELBO(kl="analytic"))
            found = torch.autograd.grad(loss, [made.noise_logits], allow_unused=True)[0]
            assert found.sum(-1).abs().max() < 1e-10
            assert (found == 0).all() if nothing else (found != 0).any()


def test_permuted_classes_permute_the_noise_matrix_and_nothing_else():
    made, order = program(), torch.tensor([2, 0, 1])
    other = program()
    place = torch.argsort(order)
    with torch.no_grad():
        other.noise_logits.copy_(made.noise_logits[:, order][:, :, order])
        other.encoder_c[-1].weight.copy_(made.encoder_c[-1].weight[order])
        other.encoder_c[-1].bias.copy_(made.encoder_c[-1].bias[order])
    renamed = torch.where(CODES >= 0, place[CODES.clamp(min=0)], -1)
    losses = []
    for each, codes in ((made, CODES), (other, renamed)):
        torch.manual_seed(1)
        losses.append(each.classification(batch(codes)) + each.penalty())
    torch.testing.assert_close(*losses)


def test_the_best_matrix_for_a_perfect_classifier_is_the_confusion_matrix():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 3000)
    labels = annotate(truth, pair_noise(3, 0.3), 1)
    made = program("A", speed=1.0)
    optimizer = torch.optim.Adam([made.noise_logits], lr=0.1)
    data = {"labels": torch.tensor(labels)[:, None]}
    one = torch.eye(3).double()[truth]
    for _ in range(300):
        optimizer.zero_grad()
        (-(one * made.evidence(data, made.log_noise())).sum(-1).mean()).backward()
        optimizer.step()
    np.testing.assert_allclose(made.noise()[0], confusion_matrix(truth, labels, 3), atol=0.01)


def test_the_marginal_of_a_conjugate_case_bounds_the_elbo():
    """z | c is Gaussian with linear means, x | z too: log p(x, y) is a log sum of Gaussian densities."""
    torch.manual_seed(0)
    made = MVAE(3, n_values=2, n_hidden=4, n_latent=2, n_second=1, dropout=0.0).double().eval()
    means = 2 * torch.randn(3, 2).double()
    made.prior_z = _Gaussian(lambda v: v[..., 1:] @ means, 1.0)
    made.observe = lambda z, _: torch.distributions.Independent(torch.distributions.Normal(z, 0.7), 1)
    data = {"values": torch.randn(4, 2).double(), "labels": torch.tensor([[0], [1], [-1], [2]])}
    data["index"] = torch.arange(4)
    variance = 1.49
    log_x = torch.distributions.Normal(means[:, None], variance**0.5).log_prob(data["values"]).sum(-1).T
    joint = log_x - np.log(3) + made.evidence(data, made.log_noise().detach())
    exact = torch.logsumexp(joint, -1)
    with torch.no_grad():
        log_w = weigh(made, data, 4000).log_w.double()
    assert (log_w.mean(0) <= exact + 1e-6).all()
    # The exact posterior of one class as a guide, where that class is certain: the weight is the evidence.
    center = (data["values"] / 0.49 + means[1]) / (1 / 0.49 + 1)
    made.encoder_z = _Gaussian(lambda v: center, (1 / (1 / 0.49 + 1)) ** 0.5)
    made.encoder_u = _Gaussian(lambda v: torch.zeros(*v.shape[:-1], 1).double(), 1.0)
    certain = torch.tensor([0.0, 1000.0, 0.0]).double()
    made.class_logits = torch.nn.Parameter(certain)
    with torch.no_grad():
        found = weigh(made, data, 5).log_w
    wanted = log_x[:, 1] + made.evidence(data, made.log_noise().detach())[:, 1]
    torch.testing.assert_close(found, wanted.expand(5, 4), rtol=1e-9, atol=1e-9)


class _Gaussian(torch.nn.Module):
    def __init__(self, loc, scale):
        super().__init__()
        self.loc, self.scale = loc, scale

    def forward(self, v, _=None):
        import pyro.distributions as dist

        return dist.Normal(self.loc(v), torch.tensor(self.scale, dtype=torch.float64)).to_event(1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"form": "A"},
        pytest.param({"form": "B"}, marks=pytest.mark.slow),
        pytest.param({"speed": 0.0}, marks=pytest.mark.slow),
        {"observation": "gaussian", "classes": "learned"},
    ],
    ids=str,
)
def test_every_form_conforms(arguments):
    labels = {"labels": np.where(np.arange(40) % 3, -1, np.arange(40) % 2)}
    check("mvae", {"x": X[:40]} | labels, **SMALL, **arguments)


@pytest.fixture(scope="module")
def clusters():
    data = noisy_clusters(300, noise=[uniform_noise(3, 0.3), pair_noise(3, 0.2)], labelled=0.8)
    truth = data.pop("truth")
    places = {"labels": ["labels_0", "labels_1"]}
    settings = {"max_epochs": 25, "learning_rate": 0.01, "kl_warmup": 0, "progress": False, "n_hidden": 32}
    return truth, data, fit("mvae", data, fields=places, **settings)


def test_two_annotators_and_their_matrices(clusters):
    truth, data, fitted = clusters
    posterior = fitted.posterior(particles=10)
    found = true_labels(posterior)
    assert (found.table["label"].astype(int) == truth).mean() > 0.97
    assert found.table["p_wrong_labels_0"].isna().equals(pd.Series(data["labels_0"] < 0))
    with pytest.raises(ValueError, match="say whose labels: annotator= one of labels_0, labels_1"):
        relabel(posterior)
    changed = relabel(posterior, fdr=0.1, annotator="labels_0")
    rows = changed.table.index.to_numpy()
    wrong = data["labels_0"][rows] != truth[rows]
    called = changed.table["wrong"].to_numpy()
    assert (~wrong[called]).mean() < 0.15 and called[wrong].mean() > 0.9
    assert suspects(changed, 3)["p_wrong"].is_monotonic_decreasing and len(changed.plot().axes) == 2
    matrix = noise_matrix(posterior)
    for name, noise in (("labels_0", uniform_noise(3, 0.3)), ("labels_1", pair_noise(3, 0.2))):
        part = matrix.table[matrix.table["annotator"] == name]
        assert np.abs(part["estimate"].to_numpy() - noise.ravel()).max() < 0.12
        assert (part["low"] <= part["estimate"]).all() and (part["estimate"] <= part["high"]).all()
    assert len(matrix.plot().axes) == 3
    new = fitted.posterior({"values": data["values"][:4]}, particles=10)
    np.testing.assert_allclose(class_probabilities(new).sum(axis=1), 1)
    assert true_labels(new).table["p_wrong_labels_0"].isna().all()
    with pytest.raises(ValueError, match="no cell has a label of annotator 'labels_0'"):
        relabel(new, annotator="labels_0")


def test_relabelling_keeps_its_rate_with_calibrated_probabilities():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.3, 0.3, 0.3], 20_000)
    truth = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)
    found = relabel(p, 0.1, labels=rng.integers(0, 3, len(p)).astype(str)).table
    called = found["wrong"].to_numpy()
    assert abs((found["given"].astype(int).to_numpy() == truth)[called].mean() - 0.1) < 0.01


def test_relabel_calls_the_longest_list_that_keeps_the_target_and_suggests_the_next_class():
    p = np.random.default_rng(1).dirichlet([0.5] * 4, 60)
    given = np.random.default_rng(2).integers(0, 4, 60)
    wrong = 1 - p[np.arange(60), given]
    order = np.argsort(-wrong)
    for fdr in (0.0, 0.02, 0.1, 0.3, 0.6):
        lists = [order[:k] for k in range(61) if k == 0 or (1 - wrong[order[:k]]).mean() <= fdr]
        found = relabel(p, fdr, labels=given.astype(str))
        assert set(np.flatnonzero(found.table["wrong"])) == set(lists[-1])
        expected = (1 - wrong[lists[-1]]).mean() if len(lists[-1]) else 0.0
        assert found.settings["expected_fdr"] == pytest.approx(expected) and found.settings["changed"] == len(lists[-1])
        assert found.settings["expected_wrong"] == pytest.approx(wrong.sum())
        for row, suggestion in enumerate(found.table["suggestion"].astype(int)):
            assert suggestion == max(set(range(4)) - {given[row]}, key=lambda c: p[row, c])
        new = np.where(found.table["wrong"], found.table["suggestion"].astype(int), given)
        assert (found.table["new_label"].astype(int) == new).all()


@pytest.mark.parametrize("form", ["A", "B", "C"])
def test_a_label_is_evidence_for_its_own_cell_only_and_of_the_size_that_the_matrix_says(form):
    """Odds of two classes with a label, over those without: T[c, y] / T[c', y]; other cells keep their odds."""
    made = program(form).eval()
    without, labelled = batch(torch.full((6, 1), -1)), batch(torch.tensor([[-1], [2], [-1], [-1], [-1], [-1]]))
    found = []
    for data in (without, labelled):
        torch.manual_seed(1)
        weights = weigh(made, data, 4)
        found.append({k: weights.draws[k].log() for k in ("c_posterior", "c_guide")})
    noise = made.log_noise()[0, :, 2].detach()
    for name in ("c_posterior", "c_guide"):
        moved = found[1][name] - found[0][name]
        torch.testing.assert_close(moved[:, [0, 2, 3, 4, 5]], torch.zeros(4, 5, 3).double(), rtol=0, atol=1e-9)
        odds = moved[:, 1, :, None] - moved[:, 1, None, :]
        torch.testing.assert_close(odds, (noise[:, None] - noise[None]).expand(4, 3, 3), rtol=1e-6, atol=1e-9)


def test_rows_of_the_matrix_are_distributions_and_start_at_the_initial_diagonal():
    for classes, initial in ((2, 0.6), (5, 0.8), (10, 0.9)):
        for speed in (0.0, 1.0, 15.0):
            made = MVAE(classes, 2, n_features=5, initial=initial, speed=speed, **SMALL)
            wanted = np.stack([uniform_noise(classes, 1 - initial)] * 2)
            np.testing.assert_allclose(made.noise(), wanted, atol=1e-5)
            with torch.no_grad():
                made.noise_logits.add_(torch.randn_like(made.noise_logits))
            np.testing.assert_allclose(made.noise().sum(-1), 1, atol=1e-6)
            assert ("noise_logits" in dict(made.named_parameters())) == (speed > 0)


def test_the_prior_pulls_the_diagonal_up_by_its_share_of_the_data():
    """The mode of Dirichlet(1 + diagonal, 1, 1) and counts is (counts + diagonal) / their sum."""
    counts = np.array([[6.0, 3.0, 1.0], [2.0, 7.0, 1.0], [0.0, 4.0, 6.0]])
    truth, labels = (np.repeat(i.ravel(), counts.astype(int).ravel()) for i in np.indices((3, 3)))
    made, one = program("B", speed=1.0, diagonal=5.0, weight=1.0), torch.eye(3).double()[truth]
    made.encoder_c = torch.nn.Identity()
    made.encoder_z = _Certain(1000 * one)
    data = {"x": torch.zeros(30, 5).double(), "labels": torch.tensor(labels)[:, None], "index": torch.arange(30)}
    optimizer = torch.optim.Adam([made.noise_logits], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        made.training_loss(Step(made, data, 30), lambda step: torch.zeros(())).backward()
        optimizer.step()
    wanted = counts + 5 * np.eye(3)
    np.testing.assert_allclose(made.noise()[0], wanted / wanted.sum(1, keepdims=True), atol=2e-3)


class _Certain(torch.nn.Module):
    """A guide without uncertainty."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, _):
        return self

    def rsample(self):
        return self.value


def test_form_b_has_no_label_in_its_objective_and_one_in_its_bounds():
    made = program("B")
    for training in (True, False):
        made.train(training)
        bounds = []
        for codes in (CODES, torch.full((6, 1), -1)):
            torch.manual_seed(1)
            bounds.append(weigh(made, batch(codes), 2).log_w)
        assert torch.equal(*bounds) is training


def test_a_matrix_that_is_not_dominant_is_remarked_on():
    made = MVAE(3, n_features=5, **SMALL)
    assert made.remarks() == []
    with torch.no_grad():
        made.noise_logits[0, 1] = torch.tensor([0.0, 0.0, 1.0])
    assert made.remarks()[0].startswith("noise matrix of annotator 0: class 1 is most often labelled 2")

    class Remarking(MVAE):
        def remarks(self):
            return ["something"]

    torch.manual_seed(0)
    built = Remarking(3, n_features=5, **SMALL)
    data = {"x": X.astype(np.float32), "labels": np.arange(60)[:, None] % 3}
    with pytest.warns(UserWarning, match="something"):
        fit(built, data, max_epochs=1, progress=False)


def test_unused_categories_are_no_classes():
    frame = pd.DataFrame({"a": pd.Categorical(["x", "y", None], ["x", "y", "never"]), "b": ["y", None, "z"]})
    schema = Schema(labels=Annotations("labels")).learn(frame, {"labels": ["a", "b"]})
    assert schema.sizes() == {"n_labels": 3, "n_annotators": 2}
    assert schema.read(frame)["labels"].values.tolist() == [[0, 1], [1, -1], [-1, 2]]
    assert schema.read(frame[["a"]])["labels"].values[:, 1].tolist() == [-1, -1, -1]


def test_no_cell_is_held_out_unless_asked_for():
    x = np.random.default_rng(0).random((40, 5))
    data, small = {"x": x, "labels": np.arange(40) % 2}, {"max_epochs": 1, "progress": False, "n_hidden": 4}
    assert len(fit("mvae", data, **small).validation_rows) == 0
    assert len(fit("mvae", data, validation=0.25, **small).validation_rows) == 10
