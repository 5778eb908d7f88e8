"""Terms that couple all cells of a minibatch by their embeddings: who is like whom, and whether environments mix.

Embeddings z [B, d] lie on the unit sphere; S_ij = z_i z_j / tau. Anchor i draws a partner with the probabilities
``softmax_k S_ik`` (over the whole minibatch, as published, or without the anchor itself). All functions return one
number for each anchor, [B]; dimensions before that of the cells (particles) are kept. The denominators run over the
minibatch, so that its size is part of what is modelled.
"""

import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import one_of

FORMS = ("batch", "count", "ce")
"""How the dependence of partners on environments is measured."""


def alike(codes: Tensor) -> Tensor:
    """Return which pairs of different cells have equal codes [B], bool [B, B]."""
    return (codes[:, None] == codes) & ~torch.eye(len(codes), dtype=torch.bool, device=codes.device)


def log_partners(z: Tensor, tau: float, itself: bool = True) -> Tensor:
    """Return the log probability of each partner for each anchor [B, B]; on the diagonal that of the anchor itself.

    Without ``itself`` the diagonal is minus infinity, and the others sum to one.
    """
    scores = z @ z.mT / tau
    if not itself:
        scores = scores.masked_fill(torch.eye(z.shape[-2], dtype=torch.bool, device=z.device), -torch.inf)
    return torch.log_softmax(scores, -1)


def supervised_contrast(z: Tensor, labels: Tensor, tau: float, itself: bool = True) -> Tensor:
    """Return the mean log probability of partners with the label of the anchor [B]; 0 for one that is alone.

    The log likelihood of a partner that is drawn among those of one label, averaged over the draw (supervised
    contrastive learning, Khosla et al. 2020; as published for SCBD the anchor is among the candidates).
    """
    positive = alike(labels)
    chosen = torch.where(positive, log_partners(z, tau, itself), 0.0).sum(-1)
    return chosen / positive.sum(-1).clamp(min=1)


def dependence(
    z: Tensor, environment: Tensor, tau: float, form: str = "count", within: Tensor | None = None, itself: bool = True
) -> Tensor:
    """Return by how much the partners of each anchor depend on the environment [B], 0 where they do not.

    Parameters
    ----------
    z : Tensor [..., B, d]
    environment : int64 [B]
    tau : float
    form : {"batch", "count", "ce"}
        ``count``: the difference between the mean log probabilities of partners in the environment of the anchor and
        elsewhere, in size: ``|z_i (m_same - m_other)| / tau`` of the mean embeddings, so that means are matched.
        ``batch``: as published, the sums of both are divided by B; for more than two environments it never reaches 0,
        and pulls all cells together. ``ce``: the divergence of the shares of environments among the cells from those
        among partners, which sees more than means.
    within : int64 [B], optional
        Labels: partners of the same label alone are compared, as environments may differ in labels.
    """
    one_of("invariance", form, FORMS)
    cells = z.shape[-2]
    other = ~torch.eye(cells, dtype=torch.bool, device=z.device)
    candidates = other if within is None else alike(within)
    same = alike(environment) & candidates
    away = candidates & ~same
    if form == "ce":
        return _divergence(z, environment, tau, candidates)
    logs = log_partners(z, tau, itself)
    ours, theirs = (torch.where(mask, logs, 0.0).sum(-1) for mask in (same, away))
    if form == "batch":
        return (ours - theirs).abs() / cells
    n_ours, n_theirs = same.sum(-1), away.sum(-1)
    apart = (ours / n_ours.clamp(min=1) - theirs / n_theirs.clamp(min=1)).abs()
    return torch.where((n_ours > 0) & (n_theirs > 0), apart, 0.0)


def _divergence(z: Tensor, environment: Tensor, tau: float, candidates: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the shares of environments among candidates to those among partners, [B]."""
    scores = (z @ z.mT / tau).masked_fill(~candidates, -torch.inf)
    kinds = torch.unique(environment)
    inside = environment == kinds[:, None]  # [E, B]
    count = candidates.to(z.dtype) @ inside.to(z.dtype).T  # [B, E]
    share = count / count.sum(-1, keepdim=True).clamp(min=1)
    # of environments without a candidate nothing is asked, and nothing flows back
    masked = torch.where(inside & candidates[:, None], scores.unsqueeze(-2), -torch.inf)
    there = count > 0
    votes = torch.logsumexp(torch.where(there[..., None], masked, 0.0), -1)
    total = torch.logsumexp(torch.where(there, votes, -torch.inf), -1, keepdim=True)
    total = torch.where(there.any(-1, keepdim=True), total, 0.0)
    terms = share * (share.clamp(min=1e-30).log() - (votes - total))
    return torch.where(there, terms, 0.0).sum(-1)
