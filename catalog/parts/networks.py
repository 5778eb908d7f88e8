"""Small networks shared by the entries. They act on the last dimension, whatever leads (particles, cells)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the last dimension; all leading dimensions are pooled.

    Momentum and eps are those of the scVI publications' current code.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, momentum=0.01, eps=1e-3)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, input.shape[-1])).view(input.shape)


class Layers(nn.Module):
    """Fully connected layers, each linear - batch normalisation - (leaky) rectifier - dropout.

    Parameters
    ----------
    n_in, n_hidden, n_layers : int
        Without any layer, the output is the input with the covariates.
    n_covariates : int
        Width of the covariates, which are joined to the input of every layer.
    dropout : float
    batch_norm : bool
    slope : float
        Of the rectifier below zero.

    Attributes
    ----------
    width : int
        H, of the output.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int = 1,
        n_covariates: int = 0,
        dropout: float = 0.0,
        batch_norm: bool = True,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.slope = slope
        widths = ([n_in] + [n_hidden] * (n_layers - 1))[:n_layers]
        self.width = n_hidden if n_layers else n_in + n_covariates
        self.linear = nn.ModuleList(nn.Linear(width + n_covariates, n_hidden) for width in widths)
        self.norm = nn.ModuleList(BatchNorm(n_hidden) if batch_norm else nn.Identity() for _ in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Return hidden values [..., H] from inputs [..., I] and covariates [B, C] or None."""
        for linear, norm in zip(self.linear, self.norm, strict=True):
            x = norm(linear(join(x, covariates)))
            x = self.dropout(F.leaky_relu(x, self.slope) if self.slope else F.relu(x))
        return x if len(self.linear) else join(x, covariates)


class NormLayers(nn.Module):
    """Layers, each linear - layer normalisation - ReLU - dropout; ``first`` normalises the input before them.

    Unlike `Layers`, they see no other cell of the minibatch.
    """

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, dropout: float = 0.0, first: bool = False) -> None:
        super().__init__()
        steps: list[nn.Module] = [nn.LayerNorm(n_in), nn.ReLU(), nn.Dropout(dropout)] if first else []
        for width in [n_in] + [n_hidden] * (n_layers - 1):
            steps += [nn.Linear(width, n_hidden), nn.LayerNorm(n_hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.steps = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)


def image_layers(n_features: int, n_channels: int, dropout: float) -> nn.Sequential:
    """Return three convolutions, from images [..., 28 x 28] to hidden values [..., 4 n_channels]."""
    if n_features != 784:
        raise ValueError(f"encoder='conv' is for images of 28 x 28 = 784 features, not {n_features}")
    layers: list[nn.Module] = [nn.Unflatten(-1, (1, 28, 28))]
    for n_in, n_out in ((1, n_channels), (n_channels, 2 * n_channels), (2 * n_channels, 4 * n_channels)):
        layers += [nn.Conv2d(n_in, n_out, 3), nn.SELU(), nn.MaxPool2d(2), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Flatten(-3))


def bounded_exp(log: Tensor, low: float, high: float, least: float = 0.0) -> Tensor:
    """Return a scale or a variance from its logarithm, clamped against overflow, plus ``least`` against collapse."""
    return log.clamp(low, high).exp() + least


def join(x: Tensor, covariates: Tensor | None) -> Tensor:
    """Append covariates [..., B, C] to the last dimension of x [..., B, I]; the dimensions before it broadcast."""
    if covariates is None:
        return x
    lead = torch.broadcast_shapes(x.shape[:-1], covariates.shape[:-1])
    return torch.cat((x.expand(*lead, -1), covariates.expand(*lead, -1)), -1)


def one_hot(codes: Tensor, classes: int) -> Tensor:
    """Return the indicators [B, classes] of codes [B], in the default floating type."""
    return F.one_hot(codes, classes).to(torch.get_default_dtype())
