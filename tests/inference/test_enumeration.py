"""Discrete sites that are summed out, against exhaustive sums and quadrature."""

from math import log, pi

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from fieldguide.inference import ELBO, IWAE, ForwardKL, Posterior, Program, Step, fit, mix, weigh
from fieldguide.inference.data.minibatches import read

SUMMED = {"enumerate": "parallel"}


class Toy(Program):
    """A toy M1+M2: c, u ~ Normal, z | c, u, x | z; guide q(z | x) q(c | z) q(u | z, c)."""

    def __init__(self, in_guide=True, mark=True):
        super().__init__()
        self.in_guide, self.infer = in_guide, SUMMED if mark else {}
        self.logits = nn.Parameter(torch.tensor([0.3, -0.4]))
        self.shift = nn.Parameter(torch.tensor([-1.0, 1.2]))
        self.slope = nn.Parameter(torch.tensor([0.7, -0.5]))
        self.guide_z = nn.Parameter(torch.tensor([0.6, 0.1, -0.3]))
        self.guide_c = nn.Parameter(torch.tensor([[0.2, -0.6], [-0.3, 0.8]]))
        self.guide_u = nn.Parameter(torch.tensor([[0.1, 0.3, -0.2], [-0.2, -0.1, 0.2]]))

    def model(self, batch):
        with self.cells(batch):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer=self.infer)
            u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(self.shift[c] + self.slope[c] * u, 0.6))
            pyro.deterministic("twice", 2 * z + c, event_dim=0)
            pyro.sample("x", dist.Normal(z, 0.8), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            z = pyro.sample("z", self.q_z(batch["x"]))
            if self.in_guide:
                c = pyro.sample("c", self.q_c(z), infer=self.infer)
                pyro.sample("u", self.q_u(z, c))
            else:
                pyro.sample("u", self.q_u(z, torch.zeros((), dtype=torch.long)))

    def q_z(self, x):
        return dist.Normal(self.guide_z[0] * x + self.guide_z[1], self.guide_z[2].exp())

    def q_c(self, z):
        return dist.Categorical(logits=self.guide_c[0] * z[..., None] + self.guide_c[1])

    def q_u(self, z, c):
        a, b, s = self.guide_u[c].unbind(-1)
        return dist.Normal(a + b * z, s.exp())

    def log_joint(self, x, z, u):
        """Log p(x, z, c, u) for both values of c, stacked first; u may have its own value for each c."""
        c = torch.arange(2).reshape((2,) + (1,) * z.dim())
        found = dist.Categorical(logits=self.logits).log_prob(c) + dist.Normal(0.0, 1.0).log_prob(u)
        found = found + dist.Normal(self.shift[c] + self.slope[c] * u, 0.6).log_prob(z)
        return found + dist.Normal(z, 0.8).log_prob(x)


X = torch.tensor(0.9)


def nodes(n=24):
    """Gauss-Hermite nodes and weights of a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(points, dtype=torch.float64), torch.tensor(weights / np.sqrt(2 * pi), dtype=torch.float64)


def evidence(toy):
    """Log p(x) and p(c | x): z and u integrated out by their Gaussian closed form."""
    scale = (0.6**2 + 0.8**2 + toy.slope**2).sqrt()
    joint = torch.log_softmax(toy.logits, 0) + dist.Normal(toy.shift, scale).log_prob(X)
    return torch.logsumexp(joint, 0), torch.softmax(joint, 0)


def quadrature(toy, n=24):
    """Grid over the guide's noise (z, u_0, u_1): log weights, the summands by c, and probabilities of the nodes."""
    points, weight = nodes(n)
    ez, e0, e1 = torch.meshgrid(points, points, points, indexing="ij")
    probability = (weight[:, None, None] * weight[:, None] * weight).flatten()
    q_z = toy.q_z(X)
    z = (q_z.loc + q_z.scale * ez).flatten()
    noise = torch.stack([e0.flatten(), e1.flatten()])
    q_u = toy.q_u(z, torch.arange(2)[:, None])
    u = q_u.loc + q_u.scale * noise
    terms = toy.log_joint(X, z, u) - q_u.log_prob(u) - q_z.log_prob(z)
    return terms, toy.q_c(z).logits.T, probability


def exact_iwelbo(log_w, probability, particles):
    """E log mean of K weights, from E log S = integral of (exp(-t) - E[exp(-t w)]^K) / t."""
    centre = log_w.max().detach()
    w = (log_w - centre).exp()
    s = torch.linspace(-18, 40, 1200, dtype=torch.float64)
    laplace = torch.stack([(probability * torch.exp(-t * w)).sum() for t in s.exp()])
    return torch.trapezoid(torch.exp(-s.exp()) - laplace**particles, s) + centre - log(particles)


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy().double()


def batch_of(n):
    return {"x": X.double().expand(n)}


@pytest.mark.parametrize("particles", [1, 2, 5])
def test_bounds_equal_the_exhaustive_sum_with_z_and_u_by_quadrature(toy, particles):
    terms, _, probability = quadrature(toy)
    log_w = torch.logsumexp(terms, 0)
    truth = exact_iwelbo(log_w, probability, particles)
    if particles == 1:
        torch.testing.assert_close(truth, (probability * log_w).sum(), rtol=0, atol=2e-5)
    torch.manual_seed(1)
    with torch.no_grad():
        found = IWAE(particles).per_cell(weigh(toy, batch_of(40_000), particles))
    assert abs(found.mean() - truth) < 5 * found.std() / 200
    assert truth < evidence(toy)[0]


def test_a_weight_is_the_exhaustive_sum_at_its_draws(toy):
    weights = weigh(toy, batch_of(6), 3)
    z, u = weights.traced["z"], weights.traced["u"]
    assert z.shape == (3, 6) and u.shape == (2, 3, 6)
    c = torch.arange(2)[:, None, None]
    terms = toy.log_joint(X, z, u) - toy.q_u(z, c).log_prob(u) - toy.q_z(X).log_prob(z)
    torch.testing.assert_close(weights.log_w, torch.logsumexp(terms, 0))
    torch.testing.assert_close(weights.draws["c_posterior"], torch.softmax(terms, 0).movedim(0, -1))
    torch.testing.assert_close(weights.draws["c_guide"], toy.q_c(z).probs)
    chosen = weights.draws["c"]
    torch.testing.assert_close(weights.draws["u"], u.gather(0, chosen[None])[0])
    torch.testing.assert_close(weights.draws["twice"], 2 * z + chosen)
    assert weights.latents == ("z", "c", "u") and weights.enumerated == ("c",)


def test_the_analytic_elbo_is_that_of_the_guide_as_written(toy):
    terms, log_c, probability = quadrature(toy)
    exact = (probability * (log_c.exp() * (terms - log_c)).sum(0)).sum()
    summed = (probability * torch.logsumexp(terms, 0)).sum()
    posterior = torch.log_softmax(terms, 0)
    gap = (probability * (log_c.exp() * (log_c - posterior)).sum(0)).sum()
    torch.testing.assert_close(summed - exact, gap)
    torch.manual_seed(1)
    objective = ELBO(kl="analytic")
    loss = objective(Step(toy, batch_of(100_000)))
    assert abs(-loss - exact) < 0.02
    wanted = torch.autograd.grad(exact, [*toy.parameters()])
    found = torch.autograd.grad(-loss, [*toy.parameters()])
    for (name, _), a, b in zip(toy.named_parameters(), wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.02, msg=name)


@pytest.mark.parametrize(
    "objective",
    [ELBO(), ELBO(gradient="stl"), IWAE(3, "reparam"), IWAE(3, "dreg")],
    ids=str,
)
def test_gradients_equal_those_of_the_quadrature(toy, objective):
    """With guide draws u_c for each c: sticking the landing and DReG need the share of c in their factors."""
    terms, _, probability = quadrature(toy)
    exact = exact_iwelbo(torch.logsumexp(terms, 0), probability, objective.particles)
    names = [n for n, _ in toy.named_parameters() if n != "guide_c"]
    wanted = torch.autograd.grad(exact, [toy.get_parameter(n) for n in names])
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        loss = objective(Step(toy, batch_of(5000)))
        found.append(torch.autograd.grad(-loss, [*toy.parameters()], allow_unused=True))
    for name, truth in zip(names, wanted, strict=True):
        place = [n for n, _ in toy.named_parameters()].index(name)
        values = torch.stack([f[place] for f in found])
        error = values.std(0) / len(found) ** 0.5
        assert ((values.mean(0) - truth).abs() < 5 * error + 1e-4).all(), name
    assert found[0][[n for n, _ in toy.named_parameters()].index("guide_c")] is None, "q(c | z) is not in the weights"


def test_in_kind_score_a_guide_site_is_drawn_and_a_model_site_summed_out(toy):
    torch.manual_seed(0)
    weights = weigh(toy, batch_of(20_000), 1, "score")
    assert weights.enumerated == () and weights.draws["c"].unique().tolist() == [0, 1]
    ratio = (weights.log_w - evidence(toy)[0]).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 20_000**0.5
    assert torch.autograd.grad(weights.log_q.sum(), [toy.guide_c])[0].abs().min() > 0
    only_model = Toy(in_guide=False).double()
    weights = weigh(only_model, batch_of(4), 2, "score")
    assert weights.enumerated == ("c",) and weights.draws["c_posterior"].shape == (2, 4, 2)
    assert torch.autograd.grad(weights.log_q.sum(), [only_model.logits], allow_unused=True)[0] is None


@pytest.mark.parametrize("in_guide", [True, False])
def test_evidence_and_posterior_probabilities(in_guide):
    program = Toy(in_guide)
    truth, probability = (v.detach().numpy() for v in evidence(program))
    found = Posterior(program, read({"x": np.full(300, float(X), dtype=np.float32)}, None), 200)
    ratio = np.exp(found.log_evidence - truth)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 300**0.5
    for function in (lambda v: v["c_posterior"][..., 1], lambda v: v["c"].float()):
        estimate = found.expect(function)
        assert abs(estimate.mean() - probability[1]) < 5 * estimate.std() / 300**0.5 + 2e-3
    draws = found.draw("c", 50)
    assert draws.shape == (50, 300) and abs(draws.mean() - probability[1]) < 0.02
    assert set(found.to_arviz(np.arange(3)).posterior) == {"z", "c", "u"}
    values = found.decode(np.arange(2), {"z": torch.zeros(5, 2), "u": torch.zeros(5, 2), "c": torch.ones(5, 2).long()})
    np.testing.assert_array_equal(values["twice"].numpy(), np.ones((5, 2)))
    _, weights, values = next(found.chunks(np.arange(2)))
    again = found.decode(np.arange(2), {n: values[n] for n in weights.latents})
    torch.testing.assert_close(again["twice"], values["twice"])


def test_draws_do_not_depend_on_the_values_of_others_and_chunks_repeat():
    found = Posterior(Toy(), read({"x": np.linspace(-1, 1, 5, dtype=np.float32)}, None), 10)
    np.testing.assert_array_equal(found.draw("c"), found.draw("c"))


def test_warm_up_tempers_the_ordinary_weight_and_averages_over_the_guide(toy):
    weights = weigh(toy, batch_of(3), 2, kl_weight=0.3)
    z, u, c = weights.traced["z"], weights.traced["u"], torch.arange(2)[:, None, None]
    likelihood = dist.Normal(z, 0.8).log_prob(X)
    log_c = toy.q_c(z).logits.movedim(-1, 0)
    ratio = toy.log_joint(X, z, u) - likelihood - toy.q_u(z, c).log_prob(u) - toy.q_z(X).log_prob(z) - log_c
    torch.testing.assert_close(weights.log_w, torch.logsumexp(log_c + 0.3 * ratio, 0) + likelihood)
    whole = torch.manual_seed(3) and weigh(toy, batch_of(3), 2)
    again = torch.manual_seed(3) and weigh(toy, batch_of(3), 2, kl_weight=torch.ones(()))
    torch.testing.assert_close(whole.log_w, again.log_w)


class Pair(Program):
    """Two discrete sites, the second depends on the first; ``summed_by_guide`` of them are in the guide."""

    def __init__(self, in_guide=0):
        super().__init__()
        self.in_guide = in_guide
        self.first, self.second = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3, 2))
        self.loc = nn.Parameter(torch.randn(3, 2))
        self.guide_c, self.guide_d = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3, 2))
        self.guide_v = nn.Parameter(torch.randn(3))

    def model(self, batch):
        with self.cells(batch):
            c = pyro.sample("c", dist.Categorical(logits=self.first), infer=SUMMED)
            d = pyro.sample("d", dist.Categorical(logits=self.second[c]), infer=SUMMED)
            v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc[c, d] + v.sum(-1), 0.7), obs=batch["x"])

    def guide(self, batch):
        with self.cells(batch):
            c = torch.zeros((), dtype=torch.long)
            if self.in_guide > 0:
                c = pyro.sample("c", dist.Categorical(logits=self.guide_c), infer=SUMMED)
            if self.in_guide > 1:
                pyro.sample("d", dist.Categorical(logits=self.guide_d[c]), infer=SUMMED)
            loc = torch.stack([self.guide_v[c], self.guide_v[c]], -1)
            pyro.sample("v", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("in_guide", [0, 1, 2])
@pytest.mark.parametrize("kind", ["reparam", "path", "analytic"])
def test_two_discrete_sites_against_the_exhaustive_sum(in_guide, kind):
    torch.manual_seed(0)
    program = Pair(in_guide)
    x = torch.randn(5)
    weights = weigh(program, {"x": x}, 4, kind)
    v = weights.traced["v"].expand(*((1,) * (in_guide == 0)), *weights.traced["v"].shape)
    v = v.reshape(*(v.shape[-4:-3] or (1,)), 1, 4, 5, 2) if in_guide else v.reshape(1, 1, 4, 5, 2)
    c, d = torch.arange(3).view(3, 1, 1, 1), torch.arange(2).view(1, 2, 1, 1)
    q_v = dist.Normal(program.guide_v[c * (in_guide > 0)][..., None], 1.0).log_prob(v).sum(-1)
    terms = dist.Categorical(logits=program.first).log_prob(c) + dist.Categorical(logits=program.second[c]).log_prob(d)
    prior_v = dist.Normal(torch.zeros(2), 1.0).log_prob(v).sum(-1)
    if kind == "analytic":  # the Kullback-Leibler term of v in closed form
        q_v, prior_v = program.guide_v[c * (in_guide > 0)] ** 2, 0.0
    terms = terms + prior_v - q_v
    terms = terms + dist.Normal(program.loc[c, d] + v.sum(-1), 0.7).log_prob(x)
    expected = torch.logsumexp(terms, (0, 1))
    if kind == "analytic" and in_guide:
        log_c = torch.log_softmax(program.guide_c, 0).view(3, 1, 1)
        if in_guide == 1:
            expected = (log_c.exp() * (torch.logsumexp(terms, 1) - log_c)).sum(0)
        else:
            log_cd = log_c[:, None] + torch.log_softmax(program.guide_d, -1).view(3, 2, 1, 1)
            expected = (log_cd.exp() * (terms - log_cd)).sum((0, 1))
    torch.testing.assert_close(weights.log_w, expected)
    share = torch.softmax(terms.flatten(0, 1), 0).view(3, 2, 4, 5)
    torch.testing.assert_close(weights.draws["d_posterior"], share.sum(0).movedim(0, -1))
    torch.testing.assert_close(weights.draws["c_posterior"], share.sum(1).movedim(0, -1))
    assert weights.draws["v"].shape == (4, 5, 2)
    if in_guide == 2:
        marginal = (torch.softmax(program.guide_c, 0)[:, None] * torch.softmax(program.guide_d, -1)).sum(0)
        torch.testing.assert_close(weights.draws["d_guide"], marginal.expand(4, 5, 2))


class Inner(Program):
    """A class of each cell, and features in an inner plate that depend on it."""

    depth = 2

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.randn(3, 2))
        self.guide_loc, self.guide_c = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))

    def model(self, batch):
        with self.cells(batch):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer=SUMMED)
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("features", 3, dim=-2):
                loc = self.loc[torch.arange(3)[:, None], c]
                pyro.sample("x", dist.Normal(loc + z, 0.5), obs=batch["x"].T)

    def guide(self, batch):
        with self.cells(batch):
            c = pyro.sample("c", dist.Categorical(logits=self.guide_c), infer=SUMMED)
            pyro.sample("z", dist.Normal(self.guide_loc[c], 1.0))


@pytest.mark.parametrize("kind", ["reparam", "path"])
def test_the_features_of_an_inner_plate_are_summed_before_the_classes(kind):
    torch.manual_seed(0)
    program, x = Inner(), torch.randn(5, 3)
    weights = weigh(program, {"x": x}, 4, kind)
    z = weights.traced["z"]
    assert z.shape == (2, 4, 1, 5) and weights.draws["z"].shape == (4, 1, 5)
    terms = []
    for c in range(2):
        one = z[c, :, 0]
        seen = dist.Normal(program.loc[:, c] + one[..., None], 0.5).log_prob(x).sum(-1)
        guide = dist.Normal(program.guide_loc[c], 1.0).log_prob(one)
        terms.append(seen - np.log(2) + dist.Normal(0.0, 1.0).log_prob(one) - guide)
    torch.testing.assert_close(weights.log_w, torch.logsumexp(torch.stack(terms), 0))
    if kind == "path":
        weights.scale_path(torch.softmax(weights.log_w.detach(), 0))
        weights.log_w.sum().backward()
        assert torch.isfinite(program.guide_loc.grad).all()


@pytest.mark.parametrize("in_guide", [True, False])
def test_a_mixture_of_guides_sums_the_class_out_of_every_density(in_guide):
    data = {"x": np.full(300, float(X), dtype=np.float32)}
    settings = {"max_epochs": 1, "progress": False, "learning_rate": 1e-6}
    first = fit(Toy(in_guide), data, **settings)
    second = first.refit(ELBO(kl="analytic"), **settings)
    with torch.no_grad():
        second.program.guide_c.neg_()
        second.program.guide_z[2] += 0.7
    truth, probability = (v.detach().numpy() for v in evidence(first.program))
    found = mix([first, second], prior=0.2).posterior(particles=100)
    ratio = np.exp(found.log_evidence - truth)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 300**0.5
    for function in (lambda v: v["c_posterior"][..., 1], lambda v: v["c"].float()):
        estimate = found.expect(function)
        assert abs(estimate.mean() - probability[1]) < 5 * estimate.std() / 300**0.5 + 2e-3
    _, weights, values = next(found.chunks(np.arange(2)))
    again = found.decode(np.arange(2), {n: values[n] for n in weights.latents})
    torch.testing.assert_close(again["twice"], values["twice"])
    alone = mix([first], prior=False).posterior(particles=50)
    _, weights, values = next(alone.chunks(np.arange(4)))
    z, u, c = values["z"], values["u"], torch.arange(2)[:, None, None]
    if in_guide:
        log_c = first.program.q_c(z).logits.movedim(-1, 0)
        log_q = torch.logsumexp(log_c + first.program.q_u(z, c).log_prob(u), 0) + first.program.q_z(X).log_prob(z)
        log_w = torch.logsumexp(first.program.log_joint(X, z, u), 0) - log_q
        torch.testing.assert_close(weights.log_w.float(), log_w.detach().float(), rtol=1e-4, atol=1e-4)
        both = mix([first, second], prior=False).posterior(particles=200)
        guides = [first.posterior(particles=400), second.posterior(particles=400)]
        plain = np.mean([g.expect(lambda v: v["c_guide"], "plugin").mean(0) for g in guides], 0)
        np.testing.assert_allclose(both.expect(lambda v: v["c_guide"], "plugin").mean(0), plain, atol=0.01)


def test_wake_by_path_gradients_would_not_train_the_guides_probabilities_and_says_so():
    step = Step(Toy(), {"x": torch.zeros(3)})
    with pytest.raises(ValueError, match="gradient='dreg' would not train .* enumerated site 'c'"):
        ForwardKL(3, "dreg")(step)
    assert Step(Toy(), {"x": torch.zeros(3)}).weights(3, "score").enumerated == ()
    assert torch.isfinite(ForwardKL(3)(step)["phi"])
