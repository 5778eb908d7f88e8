"""What training cells say of each gene where it was not intervened on, and what they can not say."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fieldguide.inference.program import Batch


@dataclass(frozen=True)
class Unforced:
    """Moments of genes over the cells in which they were not intervened on.

    Attributes
    ----------
    centre, spread : float64 Tensor [d]
        Mean and standard deviation; of a gene that was intervened on in every cell, over all cells.
    control : float64 Tensor [d] or None
        Mean of the cells without a target, if there are any.
    always : tuple of str
        Genes that were intervened on in every cell, as they are named.
    remarks : tuple of str
        What `Program.remarks` should say of the data.
    """

    centre: Tensor
    spread: Tensor
    control: Tensor | None
    always: tuple[str, ...]
    remarks: tuple[str, ...]


def unforced(batches: Iterable[Batch], forced_in: Callable[[Batch], Tensor]) -> Unforced:
    """Return the moments of genes over the training cells.

    Parameters
    ----------
    batches : iterable of minibatches, with ``x`` [B, d]
        As `Program.prepare` sees them.
    forced_in : callable
        Which genes were intervened on in a minibatch, bool [B, d].

    Raises
    ------
    ValueError
        If a gene has one value only: it has no density, and nothing can be learnt of it.
    """
    names = getattr(getattr(batches, "dataset", None), "var_names", None)

    def called(gene: int) -> str:
        return f"gene number {gene}" if names is None else f"gene {names[gene]!r}"

    batches = list(batches)
    x = torch.cat([b["x"] for b in batches]).double()
    forced = torch.cat([forced_in(b) for b in batches])
    use = torch.where(forced.all(0), torch.ones_like(forced), ~forced)
    low, high = x.masked_fill(~use, torch.inf).amin(0), x.masked_fill(~use, -torch.inf).amax(0)
    constant = (low == high).nonzero()[:, 0].tolist()
    if constant:
        j = constant[0]
        raise ValueError(
            f"{called(j)} has the value {float(low[j]):.4g} in all {int(use[:, j].sum())} training cells in which it "
            f"was not intervened on ({len(constant)} such genes): nothing can be learnt of it; leave it out"
        )
    centre = (x * use).sum(0) / use.sum(0)
    spread = (((x - centre) ** 2 * use).sum(0) / use.sum(0)).sqrt()
    control = ~forced.any(1)
    said = []
    if not forced.any():
        said.append(
            "no cell has a target: directions of edges rest on the form of the mechanisms alone, and cycles on nothing"
        )
    if len(x) <= x.shape[1]:
        said.append(
            f"{len(x)} training cells for {x.shape[1]} genes: equations of that many genes fit these cells whatever "
            "the causes are; believe no edge that does not predict interventions that were held out"
        )
    always = tuple(called(j) for j in forced.all(0).nonzero()[:, 0].tolist())
    return Unforced(centre, spread, x[control].mean(0) if control.any() else None, always, tuple(said))
