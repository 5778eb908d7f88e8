"""The three-step procedure: choose a model, fit fresh guides to it as it stands, and infer with all of them.

What makes a good model and what makes a good proposal are different questions (Lopez et al. 2020). So the model is the
one whose held-out bound is best, whatever fitted it; its parameters are frozen; guides are fitted to it by each
objective; and posterior expectations come from the mixture of these guides and the prior.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fieldguide.inference.comparison import Comparison, comparison_table
from fieldguide.inference.fitted import Fit
from fieldguide.inference.fresh_guide import with_fresh_guide
from fieldguide.inference.mixture import Mixture, checked_shares, mix
from fieldguide.inference.posterior import Posterior
from fieldguide.inference.randomness import isolated
from fieldguide.inference.training.settings import for_several

MIX = "mix"
CARRIED = ("batch_size", "learning_rate", "device", "compile")
"""Settings of the first fits that the fits of the guides share."""


@dataclass
class ThreeStep(Comparison):
    """One model with a guide by each objective, and the mixture of them.

    A `Comparison` whose rows are proposals: each guide that was fitted to the chosen model, and ``mix``. All bounds are
    of one model, at equal numbers of draws, so a higher one is a better proposal.

    Attributes
    ----------
    model : str
        Label of the fit that the model is from.
    mixture : Mixture
    """

    model: str = ""
    mixture: Mixture | None = None


def three_step(
    study: Comparison,
    guide: str | Mapping[str, str] | None = None,
    *,
    weights: str | np.ndarray = "optimised",
    prior: float | bool = True,
    progress: bool = True,
    **settings,
) -> ThreeStep:
    """Take the best model of a comparison, fit a fresh guide by each of its objectives, and mix the guides.

    Parameters
    ----------
    study : Comparison
        The first step: fits of one program by several objectives (see `compare`). The model with the best mean bound
        on the held-out cells is taken.
    guide : str, or mapping of label to str, optional
        Family of the guides, such as ``{"chi": "student_t"}``; by default that of the first fits.
    weights, prior
        Shares of the guides and of the prior in the mixture, see `mix`. Optimised by default: the training cells are at
        hand, and guides by several objectives are seldom of equal quality.
    progress : bool
    **settings
        Passed to `Fit.refit`. By default size of minibatches and learning rate are those of the first fits, epochs
        half as many (a guide to a frozen model is trained sooner than both together), and early stopping is off.

    Examples
    --------
    >>> from fieldguide.inference import compare
    >>> x = np.random.default_rng(0).normal(size=(300, 4))
    >>> study = compare("ppca", {"x": x}, ["elbo", "iwae"], n_latent=2, max_epochs=3, draws=100, progress=False)
    >>> list(three_step(study, progress=False).table.index)
    ['elbo', 'iwae', 'mix']
    """
    if not isinstance(study, Comparison):
        raise TypeError(f"study must be a Comparison, as compare returns it, not {type(study).__name__}")
    if MIX in study.fits:
        raise ValueError(f"an objective of the comparison has the label '{MIX}', which is that of the mixture")
    families = dict(guide) if isinstance(guide, Mapping) else dict.fromkeys(study.fits, guide)
    unknown = sorted(set(families) - set(study.fits))
    if unknown:
        raise KeyError(f"guide names '{unknown[0]}', but the comparison has {', '.join(study.fits)}")
    checked_shares(weights, prior, len(study.fits))  # whatever is wrong is told before the work
    settings = for_several("three_step", settings)
    chosen = str(study.table["bound"].idxmax())
    first, seed = study.fits[chosen], int(study.settings.get("seed", 0))
    shared = {name: value for name, value in study.settings.get("fit", {}).items() if name in CARRIED}
    shared |= {"early_stopping": None, "seed": seed, "max_epochs": -(-len(first.history) // 2)}
    settings = shared | settings
    with isolated(torch.device("cpu"), 0):
        for family in families.values():
            with_fresh_guide(first.program, first.entry, first.schema, first.arguments, first.initial, family)
    fits: dict[str, Fit] = {}
    for number, (label, fitted) in enumerate(study.fits.items(), 1):
        if progress:
            said = f"[{number}/{len(study.fits)}] fitting a guide to the model of {chosen} by {label}"
            print(said, file=sys.stderr, flush=True)
        fits[label] = first.refit(fitted.objective, guide=families.get(label), progress=progress, **settings)
        if fits[label].interrupted:
            raise KeyboardInterrupt
    mixture = mix(list(fits.values()), weights, prior, seed=seed).named(list(fits))  # as in the table
    held_out: dict[str, Posterior] = {}
    before = study.held_out[chosen]
    for label, fitted in fits.items():
        held_out[label] = Posterior(fitted.program, before.dataset, before.particles, seed, before.schema)
    held_out[MIX] = Posterior(first.program, before.dataset, before.particles, seed, before.schema, mixture.weigh)
    mixture.counts(before.particles)
    used: dict[str, Any] = study.settings | {"model": chosen, "guides": families, "shares": mixture.shares.tolist()}
    table = comparison_table(fits | {MIX: mixture}, held_out)
    return ThreeStep(table, fits, held_out, used, model=chosen, mixture=mixture)
