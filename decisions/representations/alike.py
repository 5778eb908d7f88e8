"""Which pairs of perturbations are alike, at a stated false discovery rate: no known group is needed."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from fieldguide.decisions.decision import Decision
from fieldguide.decisions.representations.known_groups import checked_profiles, similarity
from fieldguide.decisions.representations.retrieval import benjamini_hochberg
from fieldguide.inference.checks.arguments import checked_real

MOST = 0.99999
CENTRAL = (0.1, 0.5)
"""Quantiles between which cosines are taken for those of pairs that have nothing to do with one another."""
NOTES = (
    "The null is that of most pairs: centre and spread of the lower half of their cosines. Where more than half of all "
    "pairs are alike, it is theirs, and few are called.",
)


def alike_pairs(profiles: Any, fdr: float = 0.05) -> Decision:
    """Return the pairs of items whose profiles are more alike than those of most pairs.

    Cosines, brought to a normal scale (Fisher's z), have an empirical null (Efron 2004): a normal distribution through
    the tenth percentile and the median of all pairs, as the pairs that are alike are above them.

    Parameters
    ----------
    profiles : DataFrame [n, D], or array
        Standardised over items, as `perturbation_profiles` does: otherwise all items share a direction.
    fdr : float
        Of the pairs that are called (Benjamini and Hochberg 1995; cosines of pairs with a common item are dependent).

    Returns
    -------
    Decision
        ``table``, one row a pair, most alike first: first, second, cosine, p_value, q_value, is_called.
        ``diagnostics``, one row: centre and spread of the null in z, numbers of items, pairs and calls.

    Raises
    ------
    ValueError
        For fewer than ten items, or cosines without a spread.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> profiles = pd.DataFrame(rng.normal(size=(40, 12)))
    >>> profiles.iloc[1] = profiles.iloc[0] + 0.1
    >>> alike_pairs(profiles).table[["first", "second"]].iloc[0].tolist()
    ['0', '1']
    """
    fdr = checked_real("fdr", fdr, at_least=0, below=1)
    values, names = checked_profiles(profiles)
    if len(names) < 10:
        raise ValueError(f"profiles has {len(names)} items: the null of pairs is that of most of them, of ten or more")
    first, second = np.triu_indices(len(names), 1)
    cosine = similarity(values)[first, second]
    z = np.arctanh(np.clip(cosine, -MOST, MOST))
    low, middle = np.quantile(z, CENTRAL)
    spread = float((middle - low) / norm.ppf(CENTRAL[1] + 0.4))
    if not spread > 1e-9:
        raise ValueError("profiles: most pairs have one cosine; profiles need more than one direction")
    p_value = norm.sf((z - middle) / spread)
    q_value = benjamini_hochberg(p_value)
    table = pd.DataFrame(
        {
            "first": names.to_numpy()[first],
            "second": names.to_numpy()[second],
            "cosine": cosine,
            "p_value": p_value,
            "q_value": q_value,
            "is_called": q_value <= fdr,
        }
    ).sort_values("cosine", ascending=False, kind="stable", ignore_index=True)
    diagnostics = pd.DataFrame(
        {
            "centre": [float(middle)],
            "spread": [spread],
            "n_items": [len(names)],
            "n_pairs": [len(z)],
            "n_called": [int(table["is_called"].sum())],
        },
        index=pd.Index(["all"], name="pairs"),
    )
    return Decision(table, diagnostics, {"fdr": fdr}, NOTES)
