"""Log evidence of held-out cells under the model that simulated them: what no fitted model can beat on average.

Importance sampling from a Student-t around the posterior mode of every cell. In six dimensions this is accurate; the
effective sample size is returned so that it can be checked.
"""

import torch
from torch import distributions as dist
from torch.nn.functional import logsigmoid


def _log_joint(x, combinations, u, log_library, base, truth):
    """log p(x, u) of one cell; u [D] is z, or [D + 1] with the log library last; x, combinations, base [G]."""
    z = u[: truth["centres"].shape[1]]
    latent = dist.Normal(truth["centres"], truth["z_sd"]).log_prob(z).sum(1).logsumexp(0)
    log_p = latent - torch.log(torch.tensor(float(len(truth["centres"]))))
    if len(u) > len(z):
        log_library = u[-1]
        log_p = log_p + dist.Normal(7.0, 0.4).log_prob(log_library)
    hidden = torch.tanh(z @ truth["input"] + truth["bias"])
    log_rho = torch.log_softmax(base + hidden @ truth["output"], -1)
    theta, logit = truth["theta"], truth["zero_logit"]
    log_mean = log_library + log_rho
    log_total = torch.logaddexp(log_mean, theta.log())
    nb = combinations + theta * (theta.log() - log_total) + x * (log_mean - log_total)
    shown = logsigmoid(-logit) + nb
    return log_p + torch.where(x == 0, torch.logaddexp(logsigmoid(logit), shown), shown).sum()


def log_evidence(data, rows, library="latent", particles=1_000, seed=0):
    """log p(x) [n] of the given rows of a `scvi_counts` data set, and the effective sample sizes [n].

    ``library="latent"`` integrates the library size over its prior, ``"known"`` conditions on its true value.
    """
    torch.manual_seed(seed)

    def number(a):
        return torch.as_tensor(a, dtype=torch.float64)

    made = data.uns["simulation"]
    truth = {k: number(v) for k, v in made["decoder"].items()}
    truth |= {"centres": number(made["centres"]), "z_sd": number(made["z_sd"])}
    truth |= {k: number(data.var[k].to_numpy()) for k in ("theta", "zero_logit")}
    x, z = number(data.X[rows].toarray()), number(data.obsm["z"][rows])
    log_library = number(data.obs["log_library"].to_numpy()[rows])
    base = truth["base"] + truth["batch"][data.obs["batch"].cat.codes.to_numpy()[rows].tolist()]
    combinations = torch.lgamma(x + truth["theta"]) - torch.lgamma(truth["theta"]) - torch.lgamma(x + 1)
    u = torch.cat([z, log_library[:, None]], 1) if library == "latent" else z

    def joint(u, *cell):
        return _log_joint(*cell[:2], u, *cell[2:], truth)

    cells = (x, combinations, log_library, base)
    slope, curve = torch.func.vmap(torch.func.grad(joint)), torch.func.vmap(torch.func.hessian(joint))
    for _ in range(30):  # damped Newton from the truth; the damping makes indefinite curvature harmless
        bend = -curve(u, *cells)
        values, vectors = torch.linalg.eigh(bend)
        precision = vectors @ torch.diag_embed(values.abs().clamp(min=1.0)) @ vectors.mT
        step = torch.linalg.solve(precision, slope(u, *cells))
        u = u + step * (1 / step.norm(dim=1, keepdim=True)).clamp(max=0.5)
    proposal = dist.MultivariateNormal(torch.zeros(u.shape[1], dtype=torch.float64), precision_matrix=precision)
    mixing = dist.Chi2(torch.tensor(5.0, dtype=torch.float64)).sample((particles, len(u))) / 5
    move = proposal.sample((particles,)) / mixing.sqrt()[..., None]
    d, nu = u.shape[1], 5.0
    square = torch.einsum("kni,nij,knj->kn", move, precision, move)
    constant = torch.lgamma(torch.tensor((nu + d) / 2)) - torch.lgamma(torch.tensor(nu / 2))
    constant = constant - d / 2 * torch.log(torch.tensor(nu * torch.pi)) + torch.logdet(precision) / 2
    log_q = constant - (nu + d) / 2 * torch.log1p(square / nu)
    many = torch.func.vmap(torch.func.vmap(joint), in_dims=(0, None, None, None, None))
    log_w = torch.cat([many(v, *cells) for v in (u + move).split(25)]) - log_q
    weights = log_w.softmax(0)
    evidence = log_w.logsumexp(0) - torch.log(torch.tensor(float(particles)))
    return evidence.numpy(), (1 / (weights**2).sum(0)).numpy()
