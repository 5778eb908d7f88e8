"""How images are observed around a mean."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fieldguide.inference.checks.arguments import one_of

LIKELIHOODS = ("normal", "bernoulli")


class ImageLaw(nn.Module):
    """Distribution of images [C, S, S] given what a decoder says of them.

    Parameters
    ----------
    n_channels : int
        C.
    likelihood : {"normal", "bernoulli"}
        Normal with a noise for each channel that is learnt; or Bernoulli of logits, a quasi-likelihood of intensities
        between 0 and 1.
    """

    def __init__(self, n_channels: int, likelihood: str = "normal") -> None:
        super().__init__()
        one_of("likelihood", likelihood, LIKELIHOODS)
        self.log_noise = nn.Parameter(torch.zeros(n_channels, 1, 1)) if likelihood == "normal" else None

    def forward(self, decoded: Tensor) -> Distribution:
        if self.log_noise is None:
            return dist.Bernoulli(logits=decoded, validate_args=False).to_event(3)
        return dist.Normal(decoded, self.log_noise.exp()).to_event(3)

    def mean(self, decoded: Tensor) -> Tensor:
        """Return the mean image."""
        return decoded.sigmoid() if self.log_noise is None else decoded
