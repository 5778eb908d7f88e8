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
    figure.colorbar(image, ax=axes, label="shift (standard deviations)")
    axes.set_xlabel("latent")
    axes.set_xticks(range(shifts.shape[1]), [str(k) for k in shifts.columns], fontsize=7)
    if len(shifts) <= NAMED:
        axes.set_yticks(range(len(shifts)), list(shifts.index), fontsize=7)
    else:
        axes.set_ylabel(f"{len(shifts)} perturbations")
    figure.legend(loc="outside upper right", fontsize=7)
    return figure
