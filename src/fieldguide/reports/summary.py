"""A study in words: the formatted table and the findings, the same in the terminal and in the report."""

import numpy as np
import pandas as pd

from fieldguide.inference import Comparison, ThreeStep
from fieldguide.inference.three_steps import MIX
from fieldguide.inference.weights.pareto import khat_limit
from fieldguide.reports.study import Study

COLUMNS = {
    "bound": ("held-out bound", "{:.2f}"),
    "behind": ("behind the best", "{:.2f}"),
    "khat_median": ("k-hat, median", "{:.2f}"),
    "khat_above": ("k-hat above limit", "{:.0%}"),
    "ess_median": ("ESS, median", "{:.1f}"),
    "de_genes": ("DE genes", "{:.0f}"),
    "de_khat_above": ("DE cells above limit", "{:.0%}"),
    "de_ess_median": ("DE cells' ESS", "{:.1f}"),
    "epochs": ("epochs", "{:.0f}"),
    "seconds": ("seconds", "{:.1f}"),
}
"""Title and format of each column that is shown; ``DEFINITIONS`` says what it means."""


def shown(study: Comparison) -> pd.DataFrame:
    """Return the table as text, one row an objective, columns named as in the data (titles are in `COLUMNS`)."""
    table = pd.DataFrame(index=study.table.index)
    for name, (_, pattern) in COLUMNS.items():
        if name in study.table:
            table[name] = ["–" if pd.isna(value) else pattern.format(value) for value in study.table[name]]
    error = study.table["behind_se"]
    table["behind"] = [
        "best" if value == 0 and spread == 0 else f"{text} ± {spread:.2f}"
        for text, value, spread in zip(table["behind"], study.table["behind"], error, strict=True)
    ]
    return table


def question(study: Study) -> str:
    """Return the differential expression question as a sentence; empty when none was asked."""
    if not study.decisions:
        return ""
    s = next(iter(study.decisions.values())).settings
    return (
        f"Which genes differ by at least {2 ** s['delta']:.3g}-fold (|log2 fold change| ≥ {s['delta']:g}) between "
        f"{s['group']} and {s['reference']}, at an expected false discovery rate of {s['fdr']:g}?"
    )


def findings(study: Study) -> list[tuple[str, str]]:
    """Return (topic, sentence) of what the numbers say, and of what they do not allow to say."""
    sentences = [("Fit", _on_bounds(study.table)), ("Trust", _on_weights(study))]
    sentences += [("Proposals", _on_proposals(study.steps))] if study.steps is not None else []
    return [*sentences, ("Genes", _on_genes(study))] if study.decisions else sentences


def _on_bounds(table: pd.DataFrame) -> str:
    best = str(table["bound"].idxmax())
    text = f"{best} has the best held-out bound, {table.loc[best, 'bound']:.1f} nats per cell"
    others = table.drop(index=best)
    if others.empty:
        return text + "."
    tied = list(others.index[others["behind"] < 2 * others["behind_se"]])
    behind = [f"{label} by {row['behind']:.2f} ± {row['behind_se']:.2f}" for label, row in others.iterrows()]
    text += f"; behind it: {', '.join(behind)}"
    if tied:
        text += f". Within two standard errors, {', '.join(tied)} cannot be told from it"
    return text + "."


def _on_weights(study: Study) -> str:
    limit = khat_limit(study.settings["draws"])
    above = study.table["khat_above"]
    shares = ", ".join(f"{share:.0%} ({label})" for label, share in above.items())
    text = f"k-hat is above its limit of {limit:.2f} in {shares} of the held-out cells"
    if (above > 0.5).all():
        return (
            f"{text}: no guide covers the posterior of most cells. Do not trust expectations of single cells; "
            "the bounds are lower bounds all the same."
        )
    usable = [str(label) for label, share in above.items() if share <= 0.5]
    return f"{text}: the importance weights of most cells are usable under {', '.join(usable)}."


def _on_proposals(steps: ThreeStep) -> str:
    shares = zip(steps.mixture.names, steps.mixture.shares, strict=True) if steps.mixture is not None else ()
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares)
    mixture, guides = steps.table.loc[MIX], steps.table.drop(index=MIX)
    khat, ess = guides["khat_median"], guides["ess_median"]
    return (
        f"guides were fitted anew to the model of {steps.model}, and mixed ({parts}). Median k-hat is "
        f"{mixture['khat_median']:.2f} for the mixture, and {khat.min():.2f} to {khat.max():.2f} for single guides; "
        f"the median effective sample size {mixture['ess_median']:.1f}, and {ess.min():.1f} to {ess.max():.1f}."
    )


def _on_genes(study: Study) -> str:
    called = study.called()
    counts = ", ".join(f"{n} ({label})" for label, n in called.sum().items())
    if called.shape[1] == 1:
        return f"{counts} of {len(called)} genes are called."
    votes = called.to_numpy(dtype=bool)
    by_all, by_any = int(votes.all(1).sum()), int(votes.any(1).sum())
    share = f", {by_all / by_any:.0%} of those called by any" if by_any else ""
    opposite = _opposite(study, called)
    signs = "no two objectives disagree in direction" if not opposite else f"directions differ for {opposite} of them"
    return f"{counts} of {len(called)} genes are called. All objectives agree on {by_all}{share}; {signs}."


def _opposite(study: Study, called: pd.DataFrame) -> int:
    """Genes that two objectives call in opposite directions."""
    signs = pd.DataFrame({k: np.sign(d.table["lfc"]) for k, d in study.decisions.items()}).reindex(called.index)
    signs = signs.where(called)
    return int((signs.max(axis=1) > signs.min(axis=1)).sum())
