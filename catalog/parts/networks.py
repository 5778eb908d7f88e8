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
    """Fully connected layers, each linear - batch normalisation - ReLU - dropout.

    Parameters
    ----------
    n_in, n_hidden, n_layers : int
    n_covariates : int
        Width of the covariates, which are joined to the input of every layer.
    dropout : float
    batch_norm : bool
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int = 1,
        n_covariates: int = 0,
        dropout: float = 0.0,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        widths = [n_in] + [n_hidden] * (n_layers - 1)
        self.linear = nn.ModuleList(nn.Linear(width + n_covariates, n_hidden) for width in widths)
        self.norm = nn.ModuleList(BatchNorm(n_hidden) if batch_norm else nn.Identity() for _ in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Return hidden values [..., H] from inputs [..., I] and covariates [B, C] or None."""
        for linear, norm in zip(self.linear, self.norm, strict=True):
            x = self.dropout(F.relu(norm(linear(join(x, covariates)))))
        return x


class GaussianEncoder(nn.Module):
    """Mean and standard deviation [..., D] of a diagonal Gaussian, given inputs [..., I].

    The log variance is clamped to [-15, 15] and a variance of 1e-4 is added, against overflow and collapse.
    """

    def __init__(self, n_in: int, n_out: int, n_hidden: int, **layers) -> None:
        super().__init__()
        self.layers = Layers(n_in, n_hidden, **layers)
        self.head = nn.Linear(n_hidden, 2 * n_out)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loc, log_variance = self.head(self.layers(x, covariates)).chunk(2, dim=-1)
        return loc, (log_variance.clamp(-15, 15).exp() + 1e-4).sqrt()


def join(x: Tensor, covariates: Tensor | None) -> Tensor:
    """Append covariates [..., B, C] to the last dimension of x [..., B, I]; the dimensions before it broadcast."""
    if covariates is None:
        return x
    lead = torch.broadcast_shapes(x.shape[:-1], covariates.shape[:-1])
    return torch.cat((x.expand(*lead, -1), covariates.expand(*lead, -1)), -1)


def one_hot(codes: Tensor, classes: int) -> Tensor:
    """Return the indicators [B, classes] of codes [B], in the default floating type."""
    return F.one_hot(codes, classes).to(torch.get_default_dtype())
