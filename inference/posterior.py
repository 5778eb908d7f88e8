"""Posterior expectations by self-normalised importance sampling, streamed over cells."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from fieldguide.inference.checks.arguments import (
    checked_flag,
    checked_int,
    checked_real,
    checked_seed,
    checked_text,
    one_of,
)
from fieldguide.inference.checks.rows import row_numbers
from fieldguide.inference.data.minibatches import Dataset
from fieldguide.inference.data.schema import FittedSchema
from fieldguide.inference.messages import caution
from fieldguide.inference.overrides import require_constants, with_overrides
from fieldguide.inference.program import Program
from fieldguide.inference.randomness import isolated, stream
from fieldguide.inference.weights.annealing import anneal, temperature_schedule
from fieldguide.inference.weights.arviz_data import inference_data
from fieldguide.inference.weights.pareto import pareto_k
from fieldguide.inference.weights.tracing import Particles
from fieldguide.inference.weights.weigh import Proposal, Values, Weights, like_draws, weigh

ELEMENTS = 1_500_000
"""Size of the largest tensor of one chunk of cells (draws x cells x features): 6 MB in single precision, so that the
memory is reused rather than returned to the system and asked for again, which took half the time."""


class Posterior:
    """The posterior of every cell's latents: S draws from a proposal, with their importance weights.

    Nothing of size S x N x G is ever held: cells are visited in chunks, and equal seeds give equal draws.

    Parameters
    ----------
    program : Program
    dataset : Dataset
        N cells.
    particles : int
        S, draws for each cell.
    seed : int
    schema : FittedSchema, optional
    proposal : callable, optional
        From a minibatch and S to `Weights` of S draws for each of its cells; draws from the program's own guide by
        default. A mixture of guides is another (see `fieldguide.inference.mix`).
    """

    def __init__(
        self,
        program: Program,
        dataset: Dataset,
        particles: int,
        seed: int = 0,
        schema: FittedSchema | None = None,
        proposal: Proposal | None = None,
    ) -> None:
        self.program, self.dataset, self.schema = program, dataset, schema
        self.particles, self.seed = checked_int("particles", particles, 1), checked_seed(seed)
        self.proposal = proposal or partial(weigh, program)
        self.n_cells = dataset.n_cells
        self._log_weights: np.ndarray | None = None

    @property
    def obs(self) -> pd.DataFrame | None:
        """Annotation of the cells."""
        return self.dataset.obs

    @property
    def obs_names(self) -> pd.Index | None:
        """Names of the cells; None where the data has no obs."""
        return None if self.obs is None else self.obs.index

    @property
    def var_names(self) -> pd.Index | None:
        """Names of the genes."""
        return self.dataset.var_names

    @property
    def nuisance(self) -> tuple[str, ...]:
        """Latent sites that decisions draw anew from their prior, see `Program`."""
        return self.program.nuisance

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.program.parameters()).device

    @property
    def chunk_size(self) -> int:
        """Number of cells that are visited at once."""
        return max(1, ELEMENTS // (self.particles * max(self.dataset.width, 1)))

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latent sites."""
        return next(self.chunks(np.arange(1)))[1].latents

    @property
    def log_weights(self) -> np.ndarray:
        """Unnormalised log importance weights, float64 [S, N]."""
        if self._log_weights is None:
            self._log_weights = np.concatenate([w.log_w.double().cpu().numpy() for _, w, _ in self.chunks()], 1)
        return self._log_weights

    @property
    def ess(self) -> np.ndarray:
        """Effective sample size of each cell, 1 / sum of squared normalised weights, in [1, S]; float64 [N]."""
        normalised = torch.softmax(torch.from_numpy(self.log_weights), 0)
        return (1 / (normalised**2).sum(0)).numpy()

    @property
    def khat(self) -> np.ndarray:
        """Pareto shape of the weights' tail for each cell (PSIS; Vehtari et al. 2024), float64 [N].

        Below min(1 - 1 / log10 S, 0.7) the estimates of the cell can be used; above, the guide misses too much of
        the posterior. With fewer than 25 draws it is missing.
        """
        return pareto_k(self.log_weights)

    @property
    def log_evidence(self) -> np.ndarray:
        """Importance-sampling estimate of log p(x) for each cell, in nats, float64 [N]."""
        return torch.logsumexp(torch.from_numpy(self.log_weights), 0).numpy() - log(self.particles)

    def rows(self, cells: Any = None, name: str = "cells") -> np.ndarray:
        """Return row numbers int64 [n] of cells that were asked for by number or by a mask [N]; all by default.

        Raises
        ------
        TypeError, ValueError
            Naming the argument, for what is no row.
        """
        return (
            np.arange(self.n_cells) if cells is None else row_numbers(name, cells, self.n_cells, names=self.obs_names)
        )

    def chunks(
        self, cells: npt.ArrayLike | None = None, overrides: Mapping[str, int | float] | None = None
    ) -> Iterator[tuple[np.ndarray, Weights, Values]]:
        """Visit cells in chunks: yield (row numbers [b], weights, value of each site [S, b, ...]).

        Parameters
        ----------
        cells : array of int [n] or of bool [N], optional
            Row numbers, or a mask; all cells by default.
        overrides : mapping of str to number, optional
            Decode the same draws with these fields set to a constant, such as ``{"batch": 0}``; the weights remain
            those of the data as it is.
        """
        self.dataset.require_unchanged()
        require_constants(overrides, self.dataset.stores)
        cells, size, device = self.rows(cells), self.chunk_size, self.device
        self.program.eval()
        for number, start in enumerate(range(0, len(cells), size)):
            rows = cells[start : start + size]
            batch = {k: v.to(device) for k, v in self.dataset.batch(rows).items()}
            seed = stream(self.seed, "draws", number)
            with torch.no_grad(), pyro.validation_enabled(False), isolated(device, seed):
                weights = self.proposal(batch, self.particles)
                if weights.global_latents:
                    raise ValueError(
                        f"site '{weights.global_latents[0]}' is outside the plate '{self.program.plate}', so it has no "
                        "posterior for each cell"
                    )
                values = weights.draws
            if overrides:
                values = self.decode(rows, {name: values[name] for name in weights.latents}, overrides)
            yield rows, weights, values

    def expect(
        self,
        function: Callable[[Values], Tensor],
        estimator: str = "snis",
        cells: npt.ArrayLike | None = None,
        overrides: Mapping[str, int | float] | None = None,
    ) -> np.ndarray:
        """Return the posterior mean of ``function`` for each cell, [n, ...].

        Parameters
        ----------
        function : callable
            From the values of all sites [S, b, ...] to a tensor [S, b, ...], such as ``lambda v: v["rho"]``.
        estimator : {"snis", "plugin"}
            Self-normalised importance sampling, or the plain mean under the guide (biased unless the guide is the
            posterior; kept for comparison).
        """
        one_of("estimator", estimator, ("snis", "plugin"))
        if not callable(function):
            raise TypeError(f"function must be a callable of the sites' values, not {function!r}")
        parts = []
        for _, weights, values in self.chunks(cells, overrides):
            result = self._of(function, values)
            share = torch.softmax(weights.log_w.double(), 0).to(result.dtype)
            if estimator == "plugin":
                share = torch.full_like(share, 1 / self.particles)
            parts.append(torch.einsum("sb,sb...->b...", share, result).cpu().numpy())
        return np.concatenate(parts)

    def _of(self, function: Callable[[Values], Tensor], values: Values) -> Tensor:
        """What a function makes of the sites' values; an error that says what it must be."""
        try:
            result = function(values)
        except KeyError as error:
            if error.args and error.args[0] not in values:
                raise KeyError(f"function reads {error}, but the sites are {', '.join(sorted(values))}") from error
            raise
        if not isinstance(result, Tensor) or result.dim() < 2 or len(result) != self.particles:
            what = f"of shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
            raise TypeError(f"function must return a tensor [S, b, ...] with S = {self.particles} draws, not {what}")
        return result

    def draw(
        self, site: str, draws: int | None = None, resample: bool = True, cells: npt.ArrayLike | None = None
    ) -> np.ndarray:
        """Return draws of a site, [S, n, ...]: from the posterior by importance resampling, or from the guide.

        Parameters
        ----------
        site : str
            A latent or deterministic site.
        draws : int, optional
            Number of draws; as many as there are particles by default.
        resample : bool
            False returns the first draws from the guide as they are.
        """
        site, resample = checked_text("site", site), checked_flag("resample", resample)
        draws = self.particles if draws is None else checked_int("draws", draws, 1)
        if not resample and draws > self.particles:
            raise ValueError(f"{draws} draws without resampling, but only {self.particles} particles")
        parts = []
        for number, (_, weights, values) in enumerate(self.chunks(cells)):
            if site not in values:
                raise KeyError(f"no site '{site}'; there are {', '.join(sorted(values))}")
            if resample:
                chosen = self.pick(values[site], self.resample(weights, draws, number))
            else:
                chosen = values[site][:draws]
            parts.append(chosen.cpu().numpy())
        return np.concatenate(parts, self.program.depth)

    def resample(self, weights: Weights, draws: int, number: int = 0) -> Tensor:
        """Return indices of particles [draws, b], drawn by importance resampling with the posterior's seed."""
        generator = torch.Generator().manual_seed(stream(self.seed, "resampling", number))
        normalised = torch.softmax(weights.log_w.double(), 0).T.cpu()
        index = torch.multinomial(normalised, draws, replacement=True, generator=generator).T
        return index.to(weights.log_w.device)

    def pick(self, values: Tensor, index: Tensor) -> Tensor:
        """Return the draws [draws, b, ...] of a site's values [S, b, ...] that ``index`` [draws, b] names."""
        wide = like_draws(index, values, self.program.depth)
        return values.gather(0, wide.expand(index.shape[:1] + values.shape[1:]))

    def refine(
        self,
        limit: float = 0.7,
        temperatures: int | Sequence[float] = 100,
        leapfrog: int = 10,
        step_size: float = 0.01,
        progress: bool = True,
    ) -> "Posterior":
        """Return the posterior with the cells of k-hat above ``limit`` sampled anew, by annealed importance sampling.

        For a few cells: each costs ``temperatures`` x ``leapfrog`` x S evaluations of the model and its gradient.
        Their draws are the ends of S chains that start at the prior (see `fieldguide.inference.weights.annealing`),
        held in memory; the other cells stay as they are. Everything that can be asked of a posterior can be asked of
        the result.

        Parameters
        ----------
        limit : float
            Cells with k-hat above it are refined. k-hat needs 25 draws or more; with fewer, every cell is.
        temperatures : int or sequence of float
            Number of steps from the prior to the posterior, equally spaced, or the exponents of the likelihood, rising
            from 0 to 1. More of them lower the variance of the weights.
        leapfrog : int
            Leapfrog steps of each HMC move, of which there is one at each temperature.
        step_size : float
            Of each chain at the start. It is multiplied by 1.02 while the chain's acceptance rate is above 0.65, by
            0.98 otherwise, within [0.0001, 0.5].
        progress : bool
            Whether to show a progress bar.

        Raises
        ------
        ValueError
            If a latent site is discrete, or outside the data plate, or the cells are coupled.

        Warns
        -----
        UserWarning
            If k-hat stays above the limit in some cells.
        """
        limit = checked_real("limit", limit, infinite=True)
        step_size = checked_real("step_size", step_size, above=0)
        leapfrog, progress = checked_int("leapfrog", leapfrog, 1), checked_flag("progress", progress)
        program, schedule = self.program, temperature_schedule(temperatures)
        if not program.independent:
            raise ValueError(f"the cells of {type(program).__name__} are coupled: single cells cannot be refined")
        rows = np.flatnonzero(~(self.khat <= limit))
        if not len(rows):
            return self
        chains = (schedule, leapfrog, step_size, progress)
        size = self.chunk_size
        proposal = anneal(program, self.dataset, rows, self.proposal, self.particles, self.seed, size, *chains)
        refined = Posterior(program, self.dataset, self.particles, self.seed, self.schema, proposal)
        still = int((refined.khat[rows] > limit).sum())
        if still:
            caution(
                f"k-hat is still above {limit:g} in {still} of {len(rows)} refined cells (moves accepted: "
                f"{proposal.acceptance.mean():.0%}): use more temperatures"
            )
        return refined

    def to_arviz(self, cells: npt.ArrayLike | None = None) -> Any:
        """Return an arviz InferenceData: resampled draws of the latents, log likelihood, and weight diagnostics.

        Cells are named as in the data, or by their row number.
        """
        cells = names = self.rows(cells)
        names = names if self.obs is None else self.obs.index[names].to_numpy(dtype=str)
        latents: dict[str, list[np.ndarray]] = {}
        likelihood, stats = [], []
        for number, (_, weights, values) in enumerate(self.chunks(cells)):
            index = self.resample(weights, self.particles, number)
            for name in weights.latents:
                chosen = self.pick(values[name], index)
                latents.setdefault(name, []).append(chosen.cpu().numpy())
            likelihood.append(weights.log_likelihood.gather(0, index).double().cpu().numpy())
            stats.append(weights.log_w.double().cpu().numpy())
        return inference_data(
            {name: np.concatenate(parts, self.program.depth) for name, parts in latents.items()},
            np.concatenate(likelihood, 1),
            np.concatenate(stats, 1),
            names,
        )

    def decode(
        self,
        rows: np.ndarray,
        latents: Mapping[str, Tensor],
        overrides: Mapping[str, Any] | None = None,
        replicate: bool = False,
        repeat: int = 0,
    ) -> Values:
        """Run the model at given values of the latents: under other covariates, or with the data drawn anew.

        Parameters
        ----------
        rows : array of int
            The b cells (repeats allowed).
        latents : mapping of str to Tensor [S, b, ...]
            Values of latent sites, such as ``{name: values[name] for name in weights.latents}``; a site that is left
            out is drawn from its prior.
        overrides : mapping of str to number or array [b], optional
            Fields of the data to replace.
        replicate : bool
            Draw the observed sites too, which gives replicated data; equal calls give equal draws.
        repeat : int
            Other draws than those of the same call with another number.

        Returns
        -------
        dict of str to Tensor [S, b, ...]
            Latent and deterministic sites, and the replicated data where asked.
        """
        device, rows = self.device, self.rows(rows, "rows")
        batch = {k: v.to(device) for k, v in self.dataset.batch(rows).items()}
        batch = with_overrides(batch, overrides or {}, self.schema)
        draws = next(iter(latents.values())).shape[0]
        model = poutine.uncondition(self.program.model) if replicate else self.program.model
        model = poutine.condition(model, data=dict(latents))
        seed = stream(self.seed, "decoding", int(rows[0]), repeat)
        self.program.eval()
        with (
            torch.no_grad(),
            pyro.validation_enabled(False),
            isolated(device, seed),
            Particles(self.program, draws),
        ):
            trace = poutine.trace(model).get_trace(batch)
        sites: dict[str, Any] = {
            n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)
        }
        return {
            n: s["value"] for n, s in sites.items() if replicate or n in latents or s["infer"].get("_deterministic")
        }
