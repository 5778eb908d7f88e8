"""Networks whose latents are written in other axes."""

import torch
from torch import Tensor, nn

from fieldguide.catalog.parts.guides import Encoder
from fieldguide.catalog.parts.networks import Layers


@torch.no_grad()
def turn(encoder: Encoder, decoder: Layers, axes: Tensor, origin: Tensor) -> None:
    """Make ``axes (z - origin)`` the latents of an encoder and a decoder, in the place of z.

    The mean of the guide and what is decoded from it stay as they were; its scales stay with the coordinates.

    Parameters
    ----------
    encoder, decoder
    axes : Tensor [D, D]
    origin : Tensor [D]
    """
    size = len(origin)
    head, first = encoder.head, decoder.linear[0]
    if not (isinstance(head, nn.Linear) and isinstance(first, nn.Linear)):
        raise TypeError("latents are turned between linear layers alone")
    head.weight[:size] = axes @ head.weight[:size]
    head.bias[:size] = axes @ (head.bias[:size] - origin)
    first.bias.add_(first.weight[:, :size] @ origin)
    first.weight[:, :size] = torch.linalg.solve(axes.T, first.weight[:, :size].T).T
