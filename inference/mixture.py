"""Multiple importance sampling: the guides of one frozen model, and its prior, as one proposal.

Proposals q_1 ... q_J with n_j of S draws each, a_j = n_j / S. Every draw, wherever it comes from, gets the weight of
the balance heuristic (Veach and Guibas 1995)::

    w(z) = p(x, z) / sum_j a_j q_j(z | x)

The mean of w over all draws is unbiased for p(x), and its variance is at most that of S draws from the mixture at
random, because the numbers of draws are fixed. With the prior among the proposals, w(z) <= sup_z p(x | z) / a_prior:
every moment of w is finite where the likelihood is bounded. Which guide is best need not be known, and may differ from
cell to cell.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from fieldguide.inference.checks.arguments import checked_int, checked_real, checked_seed
from fieldguide.inference.fitted import Fit
from fieldguide.inference.fresh_guide import model_state
from fieldguide.inference.messages import caution
from fieldguide.inference.posterior import Posterior
from fieldguide.inference.program import Batch, Program, batch_size
from fieldguide.inference.weights.densities import density_at, drawn_latents, log_density, observed_sites
from fieldguide.inference.weights.enumeration import is_marked
from fieldguide.inference.weights.tracing import trace_program
from fieldguide.inference.weights.weigh import Weights, like_draws

PRIOR = "prior"
PILOT_CELLS, PILOT_DRAWS = 256, 400
"""Size of the sample from which the shares are optimised."""
GAP = 1e-2
"""Optimised shares have a mean log effective sample size within this of the best, in nats, or a warning says so."""
LEAST = 1e-3
"""Optimised shares below it are zero: they would get their one draw in vain."""


class Mixture:
    """The guides of several fits of one model, with the prior, as one proposal; made by `mix`.

    Attributes
    ----------
    fits : list of Fit
    names : list of str
        Of the components: their objectives (numbered where they repeat), and "prior".
    shares : array float64 [J]
        Share of the draws of each component.
    """

    def __init__(self, fits: Sequence[Fit], shares: np.ndarray, prior: float) -> None:
        self.fits = list(fits)
        self.prior = prior
        self.names = _names(self.fits) + ([PRIOR] if prior else [])
        self.shares = _with_prior(shares, prior)
        self.programs: list[Program] = [fit.program for fit in self.fits]

    def named(self, names: Sequence[str]) -> "Mixture":
        """Return the same mixture with other names of its fits."""
        other = copy(self)
        other.names = [*names, *self.names[len(self.fits) :]]
        return other

    def posterior(self, data=None, particles: int = 200, seed: int = 0) -> Posterior:
        """Return the `Posterior` over the latents of each cell, by importance sampling from the mixture.

        Parameters
        ----------
        data : optional
            New cells; the training data of the first fit by default.
        particles : int
            S, draws for each cell, of all components together.
        seed : int
            Equal seeds give equal draws.

        Raises
        ------
        ValueError
            If there are fewer draws than components.
        """
        first = self.fits[0]
        self.counts(particles)
        return Posterior(first.program, first.read(data), particles, seed, first.schema, self.weigh)

    def counts(self, particles: int) -> np.ndarray:
        """Return the number of draws of each component [J]: its share of S, rounded, and at least one."""
        wanted = self.shares > 0
        particles = checked_int("particles", particles, 1)
        if particles < wanted.sum():
            raise ValueError(f"particles={particles} are too few for {wanted.sum()} components")
        exact = self.shares * particles
        counts = np.maximum(np.floor(exact), wanted).astype(int)
        while counts.sum() != particles:
            step = 1 if counts.sum() < particles else -1
            room = np.where(wanted & ((counts > 1) | (step > 0)), step * (exact - counts), -np.inf)
            counts[room.argmax()] += step
        return counts

    def weigh(self, batch: Batch, particles: int) -> Weights:
        """Draw from every component and return the weights of the mixture, in double precision.

        The draws are in random order, so that the first few are draws from the mixture too.
        """
        return self.log_densities(batch, self.counts(particles))[0]

    def _draw(self, batch: Batch, counts: np.ndarray) -> dict[str, Tensor]:
        """Draws of every component, by latent site [S, B, ...], in random order."""
        particles, cells, first = int(counts.sum()), batch_size(batch), self.programs[0]
        components = [(program, "guide") for program in self.programs] + ([(first, "model")] if self.prior else [])
        traces = [
            (trace_program(program, role, batch, int(n)), program)
            for (program, role), n in zip(components, counts, strict=True)
            if n
        ]
        summed = {name for trace, _ in traces for name, site in trace.nodes.items() if is_marked(site)}
        drawn = [{n: v for n, v in drawn_latents(*traced).items() if n not in summed} for traced in traces]
        sites = list(drawn[0])
        for part in drawn[1:]:
            if set(part) != set(sites):
                raise ValueError(f"the components differ in their latent sites: {sorted(sites)} and {sorted(part)}")
        order = torch.rand(particles, cells, device=drawn[0][sites[0]].device).argsort(0)  # another for each cell
        values = {}
        for name in sites:
            value = torch.cat([part[name] for part in drawn])
            values[name] = value.gather(0, like_draws(order, value, first.depth).expand(value.shape))
        return values

    @torch.no_grad()
    def log_densities(self, batch: Batch, counts: np.ndarray) -> tuple[Weights, Tensor]:
        """Return the weights of so many draws of each component, and every component's log density there [J, S, B]."""
        particles, cells = int(counts.sum()), batch_size(batch)
        first, values = self.programs[0], self._draw(batch, counts)
        model, joint, prior, chosen = density_at(first, "model", batch, values)
        guides = [density_at(program, "guide", batch, values) for program in self.programs]
        each = [density for _, density, _, _ in guides]
        densities = torch.stack([*each, prior] if self.prior else each)
        share = torch.as_tensor(counts / particles, dtype=torch.float64, device=densities.device)
        deterministic: dict[str, Any] = {
            n: s["value"] if chosen is None else chosen.choose_site(s, first.depth)
            for n, s in model.nodes.items()
            if s["type"] == "sample" and s["infer"].get("_deterministic")
        }
        if chosen is None:
            likelihood = log_density(first, model, observed_sites(model), particles, cells)
        else:
            likelihood = chosen.log_likelihood
            values |= {n: chosen.choose_site(model.nodes[n], first.depth) for n in chosen.posterior}
            deterministic |= {f"{n}_posterior": value for n, value in chosen.posterior.items()}
            source = torch.softmax(torch.stack(each) + share[: len(each), None, None].log(), 0)[..., None]
            for name in set(chosen.posterior).intersection(*(g.posterior if g else () for *_, g in guides)):
                own = torch.stack([g.posterior[name] for *_, g in guides])
                deterministic[f"{name}_guide"] = (source * own).sum(0)  # each guide's, by how likely it made the draw
        weights = Weights(
            log_p=joint,
            log_q=torch.logsumexp(densities + share.log()[:, None, None], 0),
            globals=densities.new_zeros(particles),
            log_likelihood=likelihood,
            scale=1.0,
            draws=values | deterministic,
            latents=tuple(values),
            enumerated=() if chosen is None else tuple(chosen.posterior),
            depth=first.depth,
        )
        return weights, densities

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {share:.0%}" for name, share in zip(self.names, self.shares, strict=True))
        return f"<Mixture: {parts}>"


def mix(
    fits: Sequence[Fit],
    weights: str | Sequence[float] | np.ndarray | None = None,
    prior: float | bool = True,
    *,
    data=None,
    seed: int = 0,
) -> Mixture:
    """Combine the guides of one frozen model, and its prior, into one proposal.

    Parameters
    ----------
    fits : sequence of Fit
        Guides of one model, as `Fit.refit` makes them. Their families may differ.
    weights : {"equal", "optimised"} or array of float [J], optional
        Shares of the draws among the guides, which sum to one; equal by default. ``"optimised"`` maximises the mean
        over cells of the log effective sample size, which is minus the log of the estimated second moment of the
        normalised weights, at a pilot sample (convex; after He and Owen 2014).
    prior : float or bool
        Share of the draws that come from the model's prior, over all latent sites. True is 5 %, False none.
    data : optional
        Cells for the pilot sample; by default at most 256 training cells of the first fit.
    seed : int
        Of the pilot sample.

    Raises
    ------
    ValueError
        If the fits are of different models, or the shares are not shares.

    Examples
    --------
    >>> from fieldguide.inference import fit
    >>> x = np.random.default_rng(0).normal(size=(200, 4))
    >>> first = fit("ppca", {"x": x}, n_latent=2, max_epochs=5, progress=False)
    >>> mix([first, first.refit("iwae", progress=False)])
    <Mixture: elbo 48%, iwae 48%, prior 5%>
    """
    if isinstance(fits, Fit) or not isinstance(fits, Iterable):
        raise TypeError(f"fits must be a list of fits of one model, not {type(fits).__name__}")
    fits = list(fits)
    if not fits:
        raise ValueError("fits is empty: there is no fit to mix")
    odd = next((fit for fit in fits if not isinstance(fit, Fit)), None)
    if odd is not None:
        raise TypeError(f"fits must be a list of fits of one model; one of them is {odd!r:.60}")
    same_model(fits)
    shares, defensive = checked_shares(weights, prior, len(fits))
    seed, mixture = checked_seed(seed), Mixture(fits, shares, defensive)
    optimised = isinstance(weights, str) and weights == "optimised" and len(fits) > 1
    return _optimised(mixture, data, seed) if optimised else mixture


def checked_shares(weights: Any, prior: Any, count: int) -> tuple[np.ndarray, float]:
    """Return the shares of so many guides among themselves [J], equal ones for a word, and that of the prior.

    Raises
    ------
    TypeError, ValueError
        If these are none.
    """
    plain = isinstance(prior, bool | np.bool_)
    defensive = (0.05 if prior else 0.0) if plain else checked_real("prior", prior, at_least=0, below=1)
    asked = f"weights must be 'equal', 'optimised' or {count} shares, not {weights!r:.60}"
    if weights is None or isinstance(weights, str):
        if weights not in (None, "equal", "optimised"):
            raise ValueError(asked)
        return np.full(count, 1 / count), defensive
    try:
        shares = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(asked) from None
    if shares.shape != (count,):
        raise ValueError(f"weights must be one share for each of {count} fits, not {shares.size}")
    wrong = shares[~((shares >= 0) & np.isfinite(shares))]
    if wrong.size:
        raise ValueError(f"weights must be shares of at least 0, not {wrong[0]:g}")
    if abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"weights must sum to one (the prior takes its share of the whole), not {shares.sum():g}")
    return shares / shares.sum(), defensive


def _optimised(mixture: Mixture, data, seed: int) -> Mixture:
    """The mixture with the shares of the guides optimised at draws from it as it is."""
    first = mixture.fits[0]
    dataset = first.read(data)
    rows = first.train_rows if data is None else np.arange(dataset.n_cells)
    if len(rows) > PILOT_CELLS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, PILOT_CELLS, replace=False))
    counts = mixture.counts(PILOT_DRAWS)
    ratios: list[Tensor] = []

    def propose(batch: Batch, _: int) -> Weights:
        weights, densities = mixture.log_densities(batch, counts)
        ratios.append((densities - weights.log_q).exp())
        return weights

    pilot = Posterior(first.program, dataset, PILOT_DRAWS, seed, first.schema, propose)
    log_w = torch.cat([weights.log_w for _, weights, _ in pilot.chunks(rows)], 1)
    shares = optimal_shares(log_w, torch.cat(ratios, 2), mixture.prior)
    return Mixture(mixture.fits, shares, mixture.prior)


def optimal_shares(log_w: Tensor, ratio: Tensor, prior: float) -> np.ndarray:
    """Return the shares [J] that maximise the mean log effective sample size, given a pilot sample.

    At shares a, the second moment of a cell's normalised weights is estimated by::

        m(a) = S sum_k v_k^2 / sum_j a_j r_jk        v: normalised pilot weights, r = q_j / (pilot density)

    Its logarithm is convex in a, and so is the mean over cells, which is minimised over the simplex by sequential
    quadratic programming. Convexity bounds what is missing to the minimum by the duality gap.

    Parameters
    ----------
    log_w : Tensor [S, B]
        Log weights of the pilot draws.
    ratio : Tensor [J, S, B]
        Density of each component over that of the pilot, at the pilot draws; the prior last, where it has a share.
    prior : float
        Share of the prior, which is kept.
    """
    squares, ratio = torch.softmax(2 * log_w.double(), 0).cpu(), ratio.double().cpu()
    guides = len(ratio) - (1 if prior else 0)

    def objective(shares: np.ndarray) -> tuple[float, np.ndarray]:
        whole = torch.from_numpy(_with_prior(shares, prior))
        density = torch.einsum("j,jkb->kb", whole, ratio)
        part = squares / density
        moment = part.sum(0)
        slope = torch.einsum("kb,jkb->jb", part / density, ratio[:guides]) / moment
        return moment.log().mean().item(), -(1 - prior) * slope.mean(1).numpy()

    simplex = {"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like}
    bounds = [(LEAST / 10, 1)] * guides  # above zero, so that no pilot draw has density zero
    start, options = np.full(guides, 1 / guides), {"ftol": 1e-9, "maxiter": 500}
    shares = minimize(objective, start, jac=True, method="SLSQP", bounds=bounds, constraints=simplex, options=options).x
    slope = objective(shares)[1]
    gap = slope @ shares - slope.min()
    if not gap < GAP:
        caution(f"the shares of the mixture may be {gap:.2g} nats of log sample size from the best")
    shares = np.where(shares < LEAST, 0, shares)
    return shares / shares.sum()


def _with_prior(shares: np.ndarray, prior: float) -> np.ndarray:
    return np.append((1 - prior) * shares, prior) if prior else np.asarray(shares)


def _names(fits: list[Fit]) -> list[str]:
    names: list[str] = []
    for fit in fits:
        name = getattr(fit.objective, "__name__", type(fit.objective).__name__).lower()
        guide = fit.arguments.get("guide")
        name = name if guide in (None, "mean_field") else f"{name}-{guide}"
        count = sum(n == name or n.rpartition("-")[0] == name for n in names)
        names.append(f"{name}-{count + 1}" if count else name)
    return names


def same_model(fits: list[Fit]) -> None:
    """Raise ValueError, naming the first difference, unless model parameters and buffers are equal in all fits."""
    first = model_state(fits[0].program)
    for number, other in enumerate(fits[1:], 1):
        if type(other.program).model is not type(fits[0].program).model:
            raise ValueError(f"fit {number} is of {other.name}, fit 0 of {fits[0].name}: a mixture needs one model")
        state = model_state(other.program)
        for name in sorted(set(first) | set(state)):
            both = name in first and name in state and first[name].shape == state[name].shape
            if not both or not np.array_equal(first[name].cpu().numpy(), state[name].cpu().numpy()):
                raise ValueError(
                    f"the models of fit 0 and fit {number} differ in '{name}': fit the guides to one model (Fit.refit)"
                )
