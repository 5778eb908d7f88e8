"""Random masks over edges: one-hot choices with a straight-through gradient."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import register_kl


class GumbelOneHot(dist.OneHotCategorical):
    """A one-hot choice whose draws have the gradient of the Gumbel-softmax relaxation at temperature one.

    Draws are exactly one-hot (straight through: Jang et al. 2017, Maddison et al. 2017). The density is that of the
    discrete choice, so that Kullback-Leibler terms are exact.

    Examples
    --------
    >>> torch.manual_seed(0) and GumbelOneHot(logits=torch.tensor([0.0, 50.0])).rsample().tolist()
    [0.0, 1.0]
    """

    has_rsample = True

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Return one-hot draws [*sample_shape, *batch, C]."""
        logits = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        noise = -(-torch.rand_like(logits).log()).log()
        soft = softmax(logits + noise)
        return one_hot_of_largest(soft.detach()) + (soft - soft.detach())

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Return one-hot draws without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of one-hot values, through which a gradient passes."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


@register_kl(GumbelOneHot, GumbelOneHot)
def _divergence(one: GumbelOneHot, other: GumbelOneHot) -> Tensor:
    return (softmax(one.logits) * (one.logits - other.logits)).sum(-1)


def one_hot_of_largest(values: Tensor) -> Tensor:
    """Return the one-hot of the largest of few values, the first of equal ones; several times as fast as ``argmax``."""
    best, free, chosen = values.movedim(-1, 0).amax(0), True, []
    for part in values.unbind(-1):
        chosen.append((part == best) & free)
        free = ~chosen[-1] & free
    return torch.stack(chosen, -1).to(values.dtype)


def softmax(logits: Tensor) -> Tensor:
    """Return the softmax over the last dimension, of few choices: computed along the first, it is twenty times as fast.

    Examples
    --------
    >>> softmax(torch.zeros(2, 4)).tolist()
    [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]
    """
    return torch.softmax(logits.movedim(-1, 0), 0).movedim(0, -1)
