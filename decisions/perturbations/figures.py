"""Figures of perturbations and latents."""

from typing import Any

import numpy as np

NAMED = 60
"""Perturbations up to which the rows have names."""


def shift_map(decision: Any) -> Any:
    """Draw the shift of each latent by each perturbation, rows in an order that groups alike ones, targets marked."""
    from matplotlib.figure import Figure
    from scipy.cluster.hierarchy import leaves_list, linkage

    shifts = decision.table.pivot(index="perturbation", columns="latent", values="shift")
    marked = decision.table.pivot(index="perturbation", columns="latent", values="is_target")
    if len(shifts) > 2:
        order = leaves_list(linkage(shifts.to_numpy(), "average", optimal_ordering=len(shifts) < 500))
        shifts, marked = shifts.iloc[order], marked.iloc[order]
    tall = min(max(3.0, 0.16 * len(shifts) + 1.2), 14.0)
    figure = Figure(figsize=(max(5.0, 0.28 * shifts.shape[1] + 2.5), tall), layout="constrained")
    axes = figure.subplots()
    limit = max(float(np.quantile(np.abs(shifts.to_numpy()), 0.995)), 1e-6)
    image = axes.imshow(shifts, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    rows, columns = np.nonzero(marked.to_numpy(dtype=bool))
    axes.plot(columns, rows, "k.", markersize=3, label=f"shifted ({len(rows)})")
    figure.colorbar(image, ax=axes, extend="both", label="shift (standard deviations)")
    axes.set_xlabel("latent")
    axes.set_xticks(range(shifts.shape[1]), [str(k) for k in shifts.columns], fontsize=7)
    if len(shifts) <= NAMED:
        axes.set_yticks(range(len(shifts)), list(shifts.index), fontsize=7)
    else:
        axes.set_ylabel(f"{len(shifts)} perturbations")
    figure.legend(loc="outside upper right", fontsize=7)
    return figure


PANELS = 9
"""Pairs that have a panel of their own."""


def response_scatter(decision: Any) -> Any:
    """Draw the predicted response of each gene against the observed one, a panel for each pair, with the baseline."""
    from matplotlib.figure import Figure

    shown = decision.diagnostics.sort_values("n_cells", ascending=False, kind="stable").head(PANELS)
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * lines + 0.5), layout="constrained")
    if len(shown) < len(decision.diagnostics):
        figure.suptitle(f"{len(shown)} of {len(decision.diagnostics)} pairs, those with most cells", fontsize=9)
    table = decision.table.set_index(["context", "perturbation"])
    for panel, (_, row) in enumerate(shown.iterrows()):
        axes = figure.add_subplot(lines, columns, panel + 1)
        genes = table.loc[[(row["context"], row["perturbation"])]]
        axes.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
        known = genes["observed"].notna().any()
        across = genes["observed"] if known else genes["additive"]
        if known:
            axes.plot(across, genes["additive"], ".", color="0.6", markersize=4, label="mean of other contexts")
        axes.plot(across, genes["response"], ".", color="C0", markersize=4, label="predicted")
        score = "" if np.isnan(row["r2"]) else f"\nR2 {row['r2']:.2f}, other contexts {row['r2_additive']:.2f}"
        axes.set_title(f"{row['perturbation']} in {row['context']}{score}", fontsize=8)
        axes.set_xlabel("observed response" if known else "mean of other contexts", fontsize=8)
        axes.set_ylabel("response", fontsize=8)
        axes.tick_params(labelsize=7)
        if panel == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    return figure


def effect_map(decision: Any) -> Any:
    """Draw the interaction of each pair of context and treatment in each latent, what is particular marked."""
    from matplotlib.figure import Figure

    table = decision.table.assign(pair=decision.table["perturbation"] + " in " + decision.table["context"])
    effects = table.pivot(index="pair", columns="latent", values="effect")
    marked = table.pivot(index="pair", columns="latent", values="is_specific")
    tall = min(max(3.0, 0.16 * len(effects) + 1.2), 14.0)
    figure = Figure(figsize=(max(5.0, 0.28 * effects.shape[1] + 3.5), tall), layout="constrained")
    axes = figure.subplots()
    limit = max(float(np.quantile(np.abs(effects.to_numpy()), 0.995)), 1e-6)
    image = axes.imshow(effects, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    rows, columns = np.nonzero(marked.to_numpy(dtype=bool))
    axes.plot(columns, rows, "k.", markersize=3, label=f"particular to the context ({len(rows)})")
    figure.colorbar(image, ax=axes, extend="both", label="interaction (standard deviations)")
    axes.set_xlabel("latent")
    axes.set_xticks(range(effects.shape[1]), [str(k) for k in effects.columns], fontsize=7)
    if len(effects) <= NAMED:
        axes.set_yticks(range(len(effects)), list(effects.index), fontsize=7)
    else:
        axes.set_ylabel(f"{len(effects)} pairs")
    figure.legend(loc="outside upper right", fontsize=7)
    return figure
