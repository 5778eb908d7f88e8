"""Is a nuisance left in the latents? What predicts it from them, and a permutation test of independence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from fieldguide.decisions.cells import column
from fieldguide.decisions.decision import Decision
from fieldguide.decisions.messages import named, real_array, require_unmasked
from fieldguide.inference import Fit, permutation_test
from fieldguide.inference.checks.aligning import aligned, unnamed
from fieldguide.inference.checks.arguments import checked_int, checked_seed
from fieldguide.inference.constraints import measures
from fieldguide.inference.constraints.source import is_categorical
from fieldguide.inference.posterior import Posterior

ALPHAS = np.geomspace(1e-3, 1e4, 8)
"""Ridge penalties, chosen by the training folds."""
NOTES = (
    "Predictions are out of fold. Negative R2 is no error: the latents predict worse than the mean.",
    "The p-value is of one test for each nuisance, on the cells that were drawn for it; it is not adjusted.",
)


def independence(
    latents: "Posterior | Fit | npt.ArrayLike",
    nuisance: str | Sequence[str] | Mapping[str, Any],
    given: Any = None,
    *,
    obs: Any = None,
    site: str | None = None,
    folds: int = 5,
    trees: int = 100,
    cells: int = 1000,
    permutations: int = 200,
    least: int = 20,
    seed: int = 0,
) -> Decision:
    """Say how much of each nuisance the latents hold: by prediction from them, and by HSIC.

    Parameters
    ----------
    latents : Posterior, Fit or array [N, D]
        Of a posterior or fit, the guide's mean of the site.
    nuisance : str, list of str, or mapping of str to array [N] or [N, E]
        Columns of the cells' annotation, or values by name. Numbers are continuous, all others categories. Several
        columns of numbers are asked for together, as another block of latents: R2 is the mean over them.
    given : str or array [N], optional
        Categories, such as cell types: everything is asked within each of them, so that what a nuisance shares with
        the type does not count.
    obs : DataFrame, optional
        Where columns are looked up; by default in what ``latents`` came with.
    site : str, optional
        Latent site; the program's main one by default.
    folds : int
        Of the cross-validation.
    trees : int
        Of the random forests.
    cells : int
        At most so many cells, drawn at random, enter the permutation test, whose cost is quadratic in them.
    permutations : int
        At least 19; the p-value is 1 / (permutations + 1) at least.
    least : int
        Categories of ``given`` with fewer cells are left out.
    seed : int
        Of folds, forests, drawn cells and permutations.

    Returns
    -------
    Decision
        ``table``, one row a nuisance:

        - kind: "continuous", "categorical" or "block"
        - linear, forest: of ridge regression and a random forest, R2 (one minus squared error over that of the mean; of
          each category's own mean where ``given``), or balanced accuracy (of logistic regression and a random forest;
          the mean over categories of ``given``, by their cells)
        - chance: 0, or one over the number of classes, which is what latents without the nuisance reach
        - hsic: its unbiased estimate, between standardised latents and the nuisance
        - p_value: of independence, by permutation (within the categories of ``given``)
        - cells, cells_tested: cells that were predicted for, and those in the test

        ``settings`` holds the arguments.

    Raises
    ------
    ValueError
        For an unknown column, values missing or not finite, a nuisance that is constant (in every category of
        ``given``), a class with fewer cells than folds, or too few cells; naming it.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(200, 2))
    >>> answer = independence(z, {"kept": z[:, 0] ** 2, "gone": rng.normal(size=200)}, trees=20)
    >>> (answer.table["p_value"] < 0.05).to_dict()
    {'kept': True, 'gone': False}
    """
    folds, trees = checked_int("folds", folds, 2), checked_int("trees", trees, 1)
    least = checked_int("least (twice folds, or more)", least, 2 * folds)
    cells = checked_int("cells (least, or more)", cells, least)
    permutations, seed = checked_int("permutations", permutations, 19), checked_seed(seed)
    z, table, cells_by_name = _latents(latents, site, obs)
    wanted = _values(nuisance, cells_by_name) if isinstance(nuisance, Mapping) else None
    if wanted is None and not isinstance(nuisance, str | list | tuple):
        said = f"nuisance must be a column, a list of them or a mapping of name to values, not {nuisance!r:.60}"
        raise TypeError(said)
    names = list(wanted) if wanted else [nuisance] if isinstance(nuisance, str) else list(nuisance)
    if not names:
        raise ValueError("nuisance names nothing to look for")
    kinds, groups, name_given = _groups(given, table, cells_by_name, len(z))
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        block = wanted is not None and wanted[name].ndim == 2
        if wanted is not None and block:
            values, parts = _block(wanted[name], groups, kinds, name, least)
            categorical = False
        else:
            series = pd.Series(wanted[name]) if wanted else column(table, name, "nuisance")
            _check(series, name, len(z))
            parts = _parts(series, groups, kinds, name, folds, least)
            categorical = is_categorical(series)
            values = pd.factorize(series.astype(str), sort=True)[0] if categorical else series.to_numpy(dtype=float)
        score = _accuracies if categorical else _shares_explained
        linear, forest, chance = score(z, values, parts, folds, trees, seed)
        hsic, p_value, tested = _test(z, values, parts, categorical, cells, permutations, seed)
        rows[name] = {
            "kind": "categorical" if categorical else "block" if block else "continuous",
            "linear": linear,
            "forest": forest,
            "chance": chance,
            "hsic": hsic,
            "p_value": p_value,
            "cells": sum(map(len, parts)),
            "cells_tested": tested,
        }
    answers = pd.DataFrame.from_dict(rows, orient="index").rename_axis("nuisance")
    settings = {"given": name_given, "site": site, "folds": folds, "trees": trees, "cells": cells}
    settings |= {"permutations": permutations, "least": least, "seed": seed}
    sizes = pd.DataFrame({"cells": np.bincount(groups)}, index=pd.Index(kinds, name="category"))
    small = sizes["cells"][sizes["cells"] < least]
    few = [f"Left out: {count} cells of {kind!r}, fewer than {least}." for kind, count in small.items()]
    return Decision(answers, sizes, settings, (*NOTES, *few))


# ---- what is asked ----------------------------------------------------------------------------------------
def _latents(source: Any, site: str | None, obs: Any) -> tuple[np.ndarray, pd.DataFrame | None, pd.Index | None]:
    """Latents, and the columns and the names of the cells, as far as there are any."""
    own = None  # columns of the cells, or nothing but their names
    if isinstance(source, pd.DataFrame) and not unnamed(source.index):
        own = source[[]]
    if isinstance(source, Fit):
        own = source.read().obs
        source = source.latent(site=site)
    elif isinstance(source, Posterior):
        own = source.obs
        chosen = site or source.program.latent
        if chosen not in source.latents:
            raise KeyError(f"no latent site '{chosen}'; there are {', '.join(source.latents)}")
        source = source.expect(lambda values: values[chosen], estimator="plugin")
    z = real_array("latents (a Posterior, a Fit or numbers)", source)
    if z.ndim != 2:
        raise ValueError(f"latents must be numbers [cells, dimensions], not of shape {z.shape}")
    missing = np.flatnonzero(~np.isfinite(z).all(1))
    if missing.size:
        raise ValueError(f"latents of row {missing[0]} are missing or not finite ({missing.size} such rows)")
    if len(z) and not np.ptp(z, axis=0).any():
        raise ValueError("latents are the same in all cells: they hold nothing")
    if obs is not None and not isinstance(obs, pd.DataFrame):
        raise TypeError(f"obs must be a DataFrame, one row a cell, not {type(obs).__name__}")
    if obs is not None and own is not None:
        obs = aligned("obs", obs, own.index)
    table = own if obs is None else obs
    return z, table, None if table is None else table.index


def _values(nuisance: Mapping[str, Any], names: pd.Index | None) -> dict[str, Any]:
    """Values by name, in the order of the cells."""
    return {str(name): _labels(f"nuisance {name!r}", values, names, 2) for name, values in nuisance.items()}


def _labels(what: str, values: Any, names: pd.Index | None, most: int = 1) -> np.ndarray:
    """Numbers or labels of the cells [N], or of several columns [N, E], in their order."""
    require_unmasked(what, values)
    array = np.asarray(aligned(what, values, names))
    if not 1 <= array.ndim <= most:
        raise ValueError(f"{what} must have one value for each of the cells, not an array of shape {array.shape}")
    return array


def _groups(
    given: Any, table: pd.DataFrame | None, cells: pd.Index | None, n: int
) -> tuple[list[str], np.ndarray, str | None]:
    """Names of the categories, the code of each cell, and the name of the column."""
    if given is None:
        return ["all"], np.zeros(n, dtype=np.int64), None
    if isinstance(given, str):
        series = column(table, given, "given")
    else:
        series = pd.Series(_labels("given", given, cells))
    _check(series, "given", n)
    if pd.api.types.is_float_dtype(series.dtype):
        raise ValueError("given must be a column of categories, not of numbers")
    codes, names = pd.factorize(series.astype(str), sort=True)
    return list(map(str, names)), codes, given if isinstance(given, str) else "given"


def _check(series: pd.Series, name: str, n: int) -> None:
    if len(series) != n:
        raise ValueError(f"{name!r} has {len(series)} values for {n} cells")
    if series.dtype.kind == "c":
        raise TypeError(f"{name!r} must hold real numbers or categories, not {series.dtype}")
    missing = series.isna().to_numpy()
    if pd.api.types.is_float_dtype(series.dtype):
        missing = missing | ~np.isfinite(series.to_numpy(dtype=np.float64, na_value=np.nan))
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise ValueError(f"{name!r} of cell {str(series.index[row])!r} is missing or not finite")


def _block(values: np.ndarray, groups: np.ndarray, kinds: list[str], name: str, least: int):
    """Columns of numbers in units of their spread, without those that are constant, and the rows of each category."""
    for at in range(values.shape[1]):
        _check(pd.Series(values[:, at]), name, len(groups))
    if values.dtype.kind not in "iufb":
        raise TypeError(f"{name!r} has several columns, which must be numbers, not {values.dtype}")
    varied = values.std(0) > 0
    parts = [np.flatnonzero(groups == code) for code in range(len(kinds)) if np.sum(groups == code) >= least]
    if not varied.any() or not parts:
        what = _too_few(kinds, least) if not parts else f"nuisance {name!r} is constant"
        raise ValueError(what)
    return _standardised(values[:, varied].astype(float)), parts


def _too_few(kinds: list[str], least: int) -> str:
    where = "no category of given has" if len(kinds) > 1 else "there are not"
    return f"{where} {least} cells, which least={least} asks for"


def _parts(series: pd.Series, groups: np.ndarray, kinds: list[str], name: str, folds: int, least: int):
    """Rows of each category in which the nuisance varies and there are cells enough."""
    if series.nunique() < 2:
        raise ValueError(f"nuisance {name!r} is constant ({named(pd.Index(series), 0)}): there is nothing to find")
    large = [np.flatnonzero(groups == code) for code in range(len(kinds)) if np.sum(groups == code) >= least]
    if not large:
        raise ValueError(_too_few(kinds, least))
    varied = [rows for rows in large if series.iloc[rows].nunique() > 1]
    if not varied:
        raise ValueError(f"nuisance {name!r} is constant within every category of given: nothing of it is left")
    if not is_categorical(series):
        return varied
    counts = [series.iloc[rows].value_counts() for rows in varied]
    present = [count[count > 0] for count in counts]
    enough = [rows for rows, count in zip(varied, present, strict=True) if count.min() >= folds]
    if not enough:
        few = present[0]
        raise ValueError(
            f"class {few.index[-1]!r} of nuisance {name!r} has {few.iloc[-1]} cells, fewer than {folds} folds"
        )
    return enough


# ---- answers ----------------------------------------------------------------------------------------------
def _shares_explained(z, values, parts, folds: int, trees: int, seed: int) -> tuple[float, float, float]:
    """Out-of-fold R2 of ridge regression and of a random forest, pooled over parts."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    errors, total = np.zeros(2), 0.0
    for rows in parts:
        x, y = _standardised(z[rows]), values[rows]
        split = KFold(folds, shuffle=True, random_state=seed)
        forest = RandomForestRegressor(trees, min_samples_leaf=5, random_state=seed)
        for number, model in enumerate((RidgeCV(ALPHAS), forest)):
            errors[number] += np.sum((y - cross_val_predict(model, x, y, cv=split)) ** 2)
        total += np.sum((y - y.mean(0)) ** 2)
    explained = 1 - errors / total
    return float(explained[0]), float(explained[1]), 0.0


def _accuracies(z, codes, parts, folds: int, trees: int, seed: int) -> tuple[float, float, float]:
    """Out-of-fold balanced accuracy of logistic regression and of a random forest, and chance; means over parts."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    accuracies, weights = [], [len(rows) for rows in parts]
    for rows in parts:
        x, y = _standardised(z[rows]), codes[rows]
        split = StratifiedKFold(folds, shuffle=True, random_state=seed)
        linear = LogisticRegression(class_weight="balanced", max_iter=1000)
        forest = RandomForestClassifier(trees, min_samples_leaf=5, class_weight="balanced", random_state=seed)
        scores = [balanced_accuracy_score(y, cross_val_predict(model, x, y, cv=split)) for model in (linear, forest)]
        accuracies.append([*scores, 1 / len(np.unique(y))])
    linear, forest, chance = np.average(accuracies, axis=0, weights=weights)
    return float(linear), float(forest), float(chance)


def _test(z, values, parts, categorical: bool, cells: int, permutations: int, seed: int) -> tuple[float, float, int]:
    """Unbiased HSIC within parts (mean over their cells), its p-value by permutation within them, and the cells."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate(parts)
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    if len(rows) > cells:
        chosen = np.sort(rng.permutation(len(rows))[:cells])
        rows, group = rows[chosen], group[chosen]
    sizes = np.bincount(group, minlength=len(parts))
    inside = [np.flatnonzero(group == code) for code in np.flatnonzero(sizes >= measures.LEAST)]
    if not inside:
        raise ValueError(f"no category of given has {measures.LEAST} of the {len(rows)} drawn cells: raise cells")
    points = torch.from_numpy(_standardised(z[rows]))
    numbers = values[rows].reshape(len(rows), -1)
    targets = torch.from_numpy(values[rows] if categorical else _standardised(numbers))
    gamma = measures.median_gamma(points)
    other = 0.0 if categorical else measures.median_gamma(targets)
    grams = [measures.gaussian_gram(points[places], gamma) for places in inside]
    share = [len(places) / sum(map(len, inside)) for places in inside]

    def measure(order: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for weight, gram, places in zip(share, grams, inside, strict=True):
            values = targets[order[places]]
            theirs = measures.delta_gram(values) if categorical else measures.gaussian_gram(values, other)
            total = total + weight * measures.hsic_unbiased(gram, theirs)
        return total

    test = permutation_test(measure, len(rows), permutations, seed=seed, groups=group)
    return test.value, test.p_value, len(rows)


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std(0)
    return (values - values.mean(0)) / np.where(spread > 0, spread, 1.0)
