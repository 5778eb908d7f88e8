"""Terms that couple all cells of a minibatch by their embeddings: who is like whom, and whether environments mix.

Embeddings z [B, d] lie on the unit sphere; S_ij = z_i k_j / tau with the candidates k [M, d], the cells themselves and,
where there is a memory, earlier ones after them. Anchor i draws a partner with the probabilities ``softmax_j S_ij`` (of
all candidates, as published, or without the anchor itself). All functions return one number for each anchor, [B];
dimensions before that of the cells (particles) are kept. The denominators run over the candidates, so that their number
is part of what is modelled.
"""

import torch
from torch import Tensor

from fieldguide.inference.checks.arguments import one_of

FORMS = ("batch", "count", "ce")
"""How the dependence of partners on environments is measured."""


def others(cells: int, candidates: int, device: torch.device | None = None) -> Tensor:
    """Return which candidates are not the anchor itself, bool [B, M]; the first B candidates are the anchors."""
    return ~torch.eye(cells, candidates, dtype=torch.bool, device=device)


def alike(codes: Tensor, of_candidates: Tensor | None = None) -> Tensor:
    """Return which candidates have the code of the anchor, and are not the anchor, bool [B, M].

    Parameters
    ----------
    codes : int64 [B]
        Negative where a code is not known: then no candidate has it.
    of_candidates : int64 [M], optional
        By default the anchors are the candidates. If not, they come first among them.
    """
    keys = codes if of_candidates is None else of_candidates
    return (codes[:, None] == keys) & (codes[:, None] >= 0) & others(len(codes), len(keys), codes.device)


def scores_of(z: Tensor, tau: float, candidates: Tensor | None = None) -> Tensor:
    """Return S [B, M]."""
    return z @ (z if candidates is None else candidates).mT / tau


def log_partners(z: Tensor, tau: float, itself: bool = True, candidates: Tensor | None = None) -> Tensor:
    """Return the log probability of each candidate for each anchor [B, M]; on the diagonal that of the anchor itself.

    Without ``itself`` the diagonal is minus infinity, and the others sum to one.
    """
    scores = scores_of(z, tau, candidates)
    if not itself:
        scores = scores.masked_fill(~others(*scores.shape[-2:], z.device), -torch.inf)
    return torch.log_softmax(scores, -1)


def supervised_contrast(
    z: Tensor,
    labels: Tensor,
    tau: float,
    itself: bool = True,
    candidates: Tensor | None = None,
    of_candidates: Tensor | None = None,
) -> Tensor:
    """Return the mean log probability of partners with the label of the anchor [B]; 0 for one that is alone.

    The log likelihood of a partner that is drawn among those of one label, averaged over the draw (supervised
    contrastive learning, Khosla et al. 2020; as published for SCBD the anchor is among the candidates).

    Parameters
    ----------
    z : Tensor [..., B, d]
    labels : int64 [B]
    tau : float
    itself : bool
    candidates, of_candidates : Tensor [..., M, d], int64 [M], optional
        With their labels; the anchors come first.
    """
    positive = alike(labels, of_candidates)
    chosen = torch.where(positive, log_partners(z, tau, itself, candidates), 0.0).sum(-1)
    return chosen / positive.sum(-1).clamp(min=1)


def dependence(
    z: Tensor,
    environment: Tensor,
    tau: float,
    kinds: int,
    form: str = "count",
    within: Tensor | None = None,
    itself: bool = True,
    candidates: Tensor | None = None,
    of_candidates: Tensor | None = None,
    within_candidates: Tensor | None = None,
) -> Tensor:
    """Return by how much the partners of each anchor depend on the environment [B], 0 where they do not.

    Parameters
    ----------
    z : Tensor [..., B, d]
    environment : int64 [B]
    tau : float
    kinds : int
        How many environments there are.
    form : {"batch", "count", "ce"}
        ``count``: the difference between the mean log probabilities of partners in the environment of the anchor and
        elsewhere, in size: ``|z_i (m_same - m_other)| / tau`` of the mean embeddings, so that means are matched.
        ``batch``: as published, the sums of both are divided by B; for more than two environments it never reaches 0,
        and pulls all cells together. ``ce``: the divergence of the shares of environments among the cells from those
        among partners, which sees more than means.
    within : int64 [B], optional
        Labels: partners of the same label alone are compared, as environments may differ in labels.
    itself : bool
        Whether the anchor is among the candidates in the denominators of ``batch`` and ``count``.
    candidates, of_candidates, within_candidates : optional
        Candidates [..., M, d] with their environments and labels [M]; the anchors come first.
    """
    one_of("invariance", form, FORMS)
    keys = environment if of_candidates is None else of_candidates
    cells, number = z.shape[-2], len(keys)
    allowed = others(cells, number, z.device) if within is None else alike(within, within_candidates)
    allowed = allowed & (environment[:, None] >= 0) & (keys >= 0)
    same = alike(environment, of_candidates) & allowed
    away = allowed & ~same
    if form == "ce":
        return _divergence(scores_of(z, tau, candidates), keys, kinds, allowed)
    logs = log_partners(z, tau, itself, candidates)
    ours, theirs = (torch.where(mask, logs, 0.0).sum(-1) for mask in (same, away))
    if form == "batch":
        return (ours - theirs).abs() / number
    n_ours, n_theirs = same.sum(-1), away.sum(-1)
    apart = (ours / n_ours.clamp(min=1) - theirs / n_theirs.clamp(min=1)).abs()
    return torch.where((n_ours > 0) & (n_theirs > 0), apart, 0.0)


def _divergence(scores: Tensor, environment: Tensor, kinds: int, allowed: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the shares of environments among candidates to those among partners, [B]."""
    scores = scores.masked_fill(~allowed, -torch.inf)
    inside = environment == torch.arange(kinds, device=environment.device)[:, None]  # [E, M]
    count = allowed.to(scores.dtype) @ inside.to(scores.dtype).T  # [B, E]
    share = count / count.sum(-1, keepdim=True).clamp(min=1)
    # of environments without a candidate nothing is asked, and nothing flows back
    masked = torch.where(inside & allowed[:, None], scores.unsqueeze(-2), -torch.inf)
    there = count > 0
    votes = torch.logsumexp(torch.where(there[..., None], masked, 0.0), -1)
    total = torch.logsumexp(torch.where(there, votes, -torch.inf), -1, keepdim=True)
    total = torch.where(there.any(-1, keepdim=True), total, 0.0)
    terms = share * (share.clamp(min=1e-30).log() - (votes - total))
    return torch.where(there, terms, 0.0).sum(-1)
