"""Discrete latent sites that are summed out inside the weight of each particle.

A discrete site marked ``infer={"enumerate": "parallel"}`` is not drawn: it takes all its values at once, in a tensor
dimension of its own to the left of the particles, and every site that depends on it follows. With a discrete site c,
continuous sites z (which do not depend on it) and u (which may), and K particles, the weight of a particle is

* c in the model alone, guide q(z, u | x)::

      log w_k = log sum_c p(x, z_k, u_k, c) - log q(z_k, u_k | x)

* c in guide and model, guide q(z | x) q(c | z) q(u | z, c), with one draw u_kc for every value of c::

      log w_k = log sum_c [ p(x, z_k, c, u_kc) / q(u_kc | z_k, c) ] - log q(z_k | x)

The second is the mean over c ~ q(c | z_k) of the ordinary weight p / (q(z) q(c | z) q(u | z, c)), in which q(c | z)
cancels. In both cases the weight has mean p(x), and by Rao-Blackwell less variance than with c drawn. So every bound of
these weights (ELBO, IWAE, Renyi, CUBO) is a bound on the same log p(x), at least as tight; it is the bound of the guide
whose probabilities of c are the best there are, ``p(c | z_k, u_k., x) = softmax_c log [p(x, z_k, c, u_kc) / q(u_kc)]``,
and it does not train q(c | z). Two kinds of weights do:

* ``kind="analytic"`` (``ELBO(kl="analytic")``): the ELBO of the guide as it is written, with the expectation over
  q(c | z) taken exactly: E_z sum_c q(c | z) [log p(x, z, c, u_c) - log q(z) - log q(c | z) - log q(u_c | z, c)]. It is
  below the ELBO of the summed weights by the mean of KL(q(c | z) || p(c | z, u., x)).
* ``kind="score"`` (every ``gradient="score"``): draws are constants there, so a discrete guide site needs no
  enumeration. It is drawn, and its probabilities are in log q. Sites of the model alone are still summed out.

Path gradients (``kind="path"``: sticking the landing, DReG) keep their rules for every bound that is a function of
these weights, with one addition. The parts of the gradient that go through u_c directly, and not through z, carry the
probability of c given the particle once more: the term that is dropped for u_c is the score of one summand.

Under a KL weight b below 1 (warm-up) the weight is the mean over q(c | z) of the ordinary one with the exponent b on
prior / guide, sum_c q(c | z)^(1 - b) ...; nothing cancels, and q(c | z) is trained.
"""

from dataclasses import dataclass, field
from math import log

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from fieldguide.inference.program import Program

LEAST = -1e4
"""Log probabilities of guides are cut off here, where a product with zero would not be a number."""


def is_marked(site) -> bool:
    """Whether a site asks to be enumerated, and is not observed."""
    return site["type"] == "sample" and not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


class Enumerate(Messenger):
    """Give each marked site all its values, in a dimension of its own; one for guide and model of a trace.

    Attributes
    ----------
    sites : dict of str to int
        Dimension of each site that was enumerated: -(depth + 2) for the first, and on to the left.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.plate, self.first = program.plate, -(program.depth + 2)
        self.sites: dict[str, int] = {}

    def _pyro_sample(self, msg) -> None:
        if msg["done"] or not is_marked(msg):
            return
        name, distribution = msg["name"], msg["fn"]
        frames = [f for f in msg["cond_indep_stack"] if f.vectorized]
        if [f.name for f in frames if f.name != "particles"] != [self.plate]:
            raise NotImplementedError(
                f"site '{name}' is enumerated, so it has to be inside the plate '{self.plate}' and in no other plate"
            )
        try:
            support = distribution.enumerate_support(expand=False)
        except NotImplementedError:
            inner = getattr(distribution, "base_dist", distribution)
            raise ValueError(
                f"site '{name}' ({type(inner).__name__}) has no finite list of values to sum over: enumerate only "
                "Categorical, OneHotCategorical, Bernoulli and the like"
            ) from None
        dim = self.sites.setdefault(name, self.first - len(self.sites))
        event = support.shape[support.dim() - distribution.event_dim :]
        msg["value"] = support.reshape(support.shape[:1] + (1,) * (-dim - 1) + event)
        msg["done"] = True


def without_mask(site, value: Tensor) -> tuple[dict, Tensor]:
    """Return an enumerated site without its mask, and its log density at all its values.

    A masked site contributes nothing. Summed over C values that would be C times nothing, so there it is uniform.
    """
    log_prob, mask = site["fn"].log_prob(value), site["mask"]
    if mask is None or mask is True:
        return site, log_prob
    nothing = torch.full_like(log_prob, -log(len(value)))
    return {**site, "mask": None}, torch.where(torch.as_tensor(mask, device=value.device), log_prob, nothing)


@dataclass
class Sums:
    """What collects the log densities of one trace: those without an enumerated dimension, and those with.

    Shapes: E, one dimension for each enumerated site (size 1 where a density does not depend on it).

    Attributes
    ----------
    plain : dict of str to Tensor [K, B]
        By side: ``prior``, ``likelihood``, ``guide``.
    joint : Tensor [*E, K, B] or float
        Model minus guide, of everything that depends on an enumerated site but for its own probability in the guide.
    observed : Tensor [*E, K, B] or float
        The observed sites' part of ``joint``.
    mass : Tensor [*E, K, B] or float
        Log probability of the enumerated sites in the guide.
    tempered, spare : Tensor [*E, K, B] or float
        The same, times the KL weight of each site, and times one minus that weight.
    """

    plain: dict[str, Tensor]
    joint: Tensor | float = 0.0
    observed: Tensor | float = 0.0
    mass: Tensor | float = 0.0
    tempered: Tensor | float = 0.0
    spare: Tensor | float = 0.0

    def add(self, side: str, sign: int, value: Tensor) -> None:
        """Add the log density of a site, [K, B] or [*E, K, B]."""
        if value.dim() == 2:
            self.plain[side] = self.plain[side] + value
            return
        self.joint = self.joint + sign * value
        if side == "likelihood":
            self.observed = self.observed + value

    def add_mass(self, value: Tensor, weight: float | Tensor) -> None:
        """Add the log probability [*E, K, B] of an enumerated site in the guide, of this KL weight."""
        finite = value.clamp(min=LEAST)
        self.mass = self.mass + value
        self.tempered = self.tempered + weight * finite
        if not (isinstance(weight, float) and weight == 1.0):
            self.spare = self.spare + (1 - weight) * finite


@dataclass
class Enumerated:
    """Result of summing out: what `weigh` adds to its weights.

    Attributes
    ----------
    log_sum : Tensor [K, B]
        To be added to log p.
    log_likelihood : Tensor [K, B]
        The observed sites' part, at the values that were chosen.
    posterior, guide : dict of str to Tensor [K, B, C]
        For each enumerated site, its probabilities given the other draws of the particle, and in the guide.
    share : Tensor [*E, K, B]
        The joint probabilities behind ``posterior``.
    chosen : Tensor [K, B]
        A draw of the values of all enumerated sites from ``share``, as a flat index into E.
    """

    log_sum: Tensor
    log_likelihood: Tensor
    share: Tensor
    chosen: Tensor
    posterior: dict[str, Tensor] = field(default_factory=dict)
    guide: dict[str, Tensor] = field(default_factory=dict)

    def choose(self, value: Tensor, event_dim: int, depth: int) -> Tensor:
        """Return a site's value [K, (inner), B, event] at the chosen values of the enumerated sites."""
        wide, sizes = self.share.dim() - 2, self.share.shape[:-2]
        lead = value.dim() - event_dim - depth - 1
        if lead <= 0:
            return value
        rest = list(value.shape[lead:])
        rest[0], rest[depth] = self.share.shape[-2], self.share.shape[-1]
        full = value.reshape((1,) * (wide - lead) + value.shape).expand(*sizes, *rest).flatten(0, wide - 1)
        index = self.chosen.reshape((1,) + self.chosen.shape[:1] + (1,) * (depth - 1) + self.chosen.shape[1:])
        index = index.reshape(index.shape + (1,) * event_dim).expand(1, *rest)
        return full.gather(0, index).squeeze(0)

    def choose_site(self, site, depth: int) -> Tensor:
        """Return a site's value at the chosen values; deterministic sites have to say where their events begin."""
        value, event_dim = site["value"], site["fn"].event_dim
        if event_dim == value.dim() > 0:  # what `pyro.deterministic` takes when it is not told
            *sizes, particles, cells = self.share.shape
            for lead in range(1, len(sizes) + 1):
                ends = (value.shape[lead : lead + 1], value.shape[lead + depth : lead + depth + 1])
                if ends == ((particles,), (cells,)) and value.shape[0] in (1, sizes[-lead]):
                    raise ValueError(
                        f"deterministic site '{site['name']}' {tuple(value.shape)} may depend on an enumerated site: "
                        "give it event_dim= (0 for one number a cell)"
                    )
        return self.choose(value, event_dim, depth)

    def share_of(self, draws: Tensor, lead: int) -> Tensor:
        """Return the probabilities [*e, K, B] of the values that draws with ``lead`` such dimensions stand for."""
        wide = self.share.dim() - 2
        absent = [d for d in range(wide) if d < wide - lead or draws.shape[d - (wide - lead)] == 1]
        share = self.share.sum(absent, keepdim=True) if absent else self.share
        return share.reshape(share.shape[wide - lead :])


def sum_out(sums: Sums, sites: dict[str, int], in_guide: set[str], kind: str, depth: int) -> Enumerated:
    """Sum the enumerated sites out; ``sites`` are their dimensions, ``in_guide`` those that the guide has too."""
    joint: Tensor = sums.joint + sums.spare  # type: ignore[assignment]
    wide = joint.dim() - 2
    first = -(depth + 2)
    place = {name: wide - 1 - (first - dim) for name, dim in sites.items()}  # position of the site's dimension in E
    flat = joint.flatten(0, wide - 1)
    log_sum = torch.logsumexp(flat, 0)
    share = torch.softmax(flat.detach(), 0)
    noise = -torch.empty_like(share).exponential_().clamp(min=1e-30).log()
    chosen = (flat.detach() + noise).argmax(0)
    share = share.reshape(joint.shape)
    if kind == "analytic" and in_guide:
        log_sum = _expected(sums, [place[n] for n in sites if n not in in_guide])
    result = Enumerated(log_sum, torch.zeros_like(log_sum), share, chosen)
    if isinstance(sums.observed, Tensor):
        result.log_likelihood = result.choose(sums.observed.reshape(_split(sums.observed, depth)), 0, depth).reshape(
            chosen.shape
        )
    mass = sums.mass.detach().exp() if isinstance(sums.mass, Tensor) else None
    for name in sites:
        others = [d for d in range(wide) if d != place[name]]
        result.posterior[name] = (share.sum(others) if others else share).movedim(0, -1)
        if name in in_guide and mass is not None:
            known = mass.reshape((1,) * (wide + 2 - mass.dim()) + mass.shape)
            marginal = known.sum(others) if others else known
            result.guide[name] = marginal.movedim(0, -1).expand(*chosen.shape, -1)
    return result


def _expected(sums: Sums, summed: list[int]) -> Tensor:
    """Mean over the guide's probabilities of log p - log q, after summing out what only the model has, [K, B]."""
    value: Tensor = sums.joint - sums.tempered  # type: ignore[assignment]
    mass: Tensor = sums.mass  # type: ignore[assignment]
    wide = value.dim() - 2
    mass = mass.reshape((1,) * (value.dim() - mass.dim()) + mass.shape)
    if summed:
        value = torch.logsumexp(value, summed, keepdim=True)
    probability = mass.exp()
    possible = probability > 0
    return (probability * torch.where(possible, value, 0.0)).sum(tuple(range(wide)))


def _split(value: Tensor, depth: int) -> tuple[int, ...]:
    """Shape [*E, K, B] with inner plates of size 1 between particles and cells."""
    return tuple(value.shape[:-1]) + (1,) * (depth - 1) + tuple(value.shape[-1:])
