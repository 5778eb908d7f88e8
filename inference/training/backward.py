"""How the price of a constraint reaches the parameters: in the backward pass of the loss where it can.

A term acts on one group of parameters. Where its graph reaches no others, as with draws of the guide, it is added to
the loss, and one backward pass serves both. Where it reaches others (a measure of the decoder's output), the gradient
of the group's parameters is taken by a pass of its own, so that the others stay exactly as they would be without it.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fieldguide.inference.step import Losses

Term = tuple[str, str | None, Tensor]
"""Name of the constraint, the group that it acts on (None: all), and what is added to the loss."""
Pull = tuple[nn.Parameter, Tensor]


def attach(
    losses: Losses, terms: Iterable[Term], groups: Mapping[str, Sequence[nn.Parameter]]
) -> tuple[Losses, list[Pull]]:
    """Return the losses with the terms that share their backward pass, and the gradients of the other terms.

    Parameters
    ----------
    losses : Tensor or dict of str to Tensor
        Of the objective: one, or one for each group.
    terms : iterable of (name, group, Tensor)
    groups : mapping of str to parameters
        Those that are trained.

    Raises
    ------
    KeyError
        For a group that there is not.
    ValueError
        For a term that depends on no parameter of its group.
    """
    pulls: list[Pull] = []
    trained = {id(p) for members in groups.values() for p in members}
    for name, group, term in terms:
        if group is not None and group not in groups:
            raise KeyError(f"constraint '{name}': no parameter group '{group}'; groups are {', '.join(groups)}")
        chosen = groups.values() if group is None else [groups[group]]
        members = [p for group_members in chosen for p in group_members]
        inside, touched = {id(p) for p in members}, reached(term) & trained
        if not touched & inside:
            raise ValueError(f"constraint '{name}' does not depend on a parameter of group '{group}' that is trained")
        if isinstance(losses, Tensor) and touched <= inside:
            losses = losses + term
        elif not isinstance(losses, Tensor) and group in losses:  # whose backward pass is for that group alone
            losses = {**losses, group: losses[group] + term}
        else:
            gradients = torch.autograd.grad(term, members, retain_graph=True, allow_unused=True)
            pulls += [(p, g) for p, g in zip(members, gradients, strict=True) if g is not None]
    return losses, pulls


def reached(value: Tensor) -> set[int]:
    """Return the ids of the parameters that a tensor depends on, from its graph; nothing is computed."""
    leaves = {id(value)} if value.is_leaf and value.requires_grad else set()
    visited, stack = set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        stack.extend(before for before, _ in node.next_functions)
    return leaves
