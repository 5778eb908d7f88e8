"""Networks that take images apart into content and style, and put them together (Choi et al. 2020, StarGAN v2)."""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
COARSE = 4
"""Pixels down to which a critic halves images."""


class AdaptiveNorm(nn.Module):
    """Instance normalisation whose scale and shift are linear in a style [B, E]."""

    def __init__(self, n_style: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_style, 2 * width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.linear(style)[..., None, None].chunk(2, 1)
        return (1 + scale) * F.instance_norm(x) + shift


class DownBlock(nn.Module):
    """Residual block, with instance normalisation or without, that halves images or not.

    Parameters
    ----------
    n_in, n_out : int
    halve, normalise : bool
    """

    def __init__(self, n_in: int, n_out: int, halve: bool = True, normalise: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(n_in, n_in, 3, 1, 1), nn.Conv2d(n_in, n_out, 3, 1, 1)
        self.first_norm = nn.InstanceNorm2d(n_in, affine=True) if normalise else nn.Identity()
        self.second_norm = nn.InstanceNorm2d(n_in, affine=True) if normalise else nn.Identity()
        self.shorter = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity()
        self.halves = halve

    def forward(self, x: Tensor) -> Tensor:
        direct = self.shorter(x)
        inner = self.first(F.leaky_relu(self.first_norm(x), SLOPE))
        if self.halves:
            direct, inner = F.avg_pool2d(direct, 2), F.avg_pool2d(inner, 2)
        inner = self.second(F.leaky_relu(self.second_norm(inner), SLOPE))
        return (direct + inner) / sqrt(2)


class UpBlock(nn.Module):
    """Residual block with a style, that doubles images by nearest neighbours or not."""

    def __init__(self, n_in: int, n_out: int, n_style: int, double: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(n_in, n_out, 3, 1, 1), nn.Conv2d(n_out, n_out, 3, 1, 1)
        self.first_norm, self.second_norm = AdaptiveNorm(n_style, n_in), AdaptiveNorm(n_style, n_out)
        self.shorter = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity()
        self.doubles = double

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        direct, inner = x, F.leaky_relu(self.first_norm(x, style), SLOPE)
        if self.doubles:
            direct, inner = (F.interpolate(part, scale_factor=2.0) for part in (direct, inner))
        inner = self.second(F.leaky_relu(self.second_norm(self.first(inner), style), SLOPE))
        return (self.shorter(direct) + inner) / sqrt(2)


class StyleGenerator(nn.Module):
    """Network from an image [B, C, S, S] and a style [B, E] to the image in that style.

    Parameters
    ----------
    n_channels, n_style : int
        C and E.
    width : int
        Channels of the first stage.
    halvings : int
        How often images are halved, and doubled again; S is a multiple of two to this power.
    bottleneck : int
        Blocks at the coarsest size, half of them without and half with a style.
    """

    def __init__(self, n_channels: int, n_style: int, width: int, halvings: int = 1, bottleneck: int = 2) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(halvings + 1)]
        self.start = nn.Conv2d(n_channels, width, 3, 1, 1)
        down = [DownBlock(a, b, True, True) for a, b in zip(widths, widths[1:], strict=False)]
        self.down = nn.Sequential(
            *down, *(DownBlock(widths[-1], widths[-1], False, True) for _ in range(bottleneck // 2))
        )
        same = [UpBlock(widths[-1], widths[-1], n_style, False) for _ in range(bottleneck - bottleneck // 2)]
        back = widths[::-1]
        self.up = nn.ModuleList([*same, *(UpBlock(a, b, n_style) for a, b in zip(back, back[1:], strict=False))])
        self.norm, self.head = nn.InstanceNorm2d(width, affine=True), nn.Conv2d(width, n_channels, 1)

    def forward(self, images: Tensor, style: Tensor) -> Tensor:
        x = self.down(self.start(images))
        for block in self.up:
            x = block(x, style)
        return self.head(F.leaky_relu(self.norm(x), SLOPE))


class StyleEncoder(nn.Module):
    """Network from images [B, C, S, S] to numbers [B, K]: a style, or one logit for each class (a critic).

    Parameters
    ----------
    n_channels, n_out, width : int
        C, K, and channels of the first stage, which double with each halving up to 512.
    size : int
        S, halved down to 4 pixels or fewer.
    """

    def __init__(self, n_channels: int, n_out: int, width: int, size: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(n_channels, width, 3, 1, 1)]
        while size > COARSE:
            parts.append(DownBlock(width, min(2 * width, 512)))
            width, size = min(2 * width, 512), size // 2
        self.parts = nn.Sequential(*parts, nn.LeakyReLU(SLOPE), nn.Conv2d(width, width, size), nn.LeakyReLU(SLOPE))
        self.head = nn.Linear(width, n_out)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.parts(images).flatten(1))


class Mapping(nn.Module):
    """Network from a row [B, M] of a table and noise [B, W] to a style [B, E]."""

    def __init__(self, n_row: int, n_noise: int, n_style: int, width: int = 512, n_layers: int = 4) -> None:
        super().__init__()
        widths = [n_row + n_noise, *[width] * (n_layers - 1)]
        hidden = [m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
        self.parts = nn.Sequential(*hidden, nn.Linear(widths[-1], n_style))

    def forward(self, row: Tensor, noise: Tensor) -> Tensor:
        return self.parts(torch.cat((row, noise), -1))


def kaiming(module: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers as for rectifiers (He et al. 2015), with biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
