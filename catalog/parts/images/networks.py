"""Small convolutional networks for images of 16 to 96 pixels: residual encoders, a decoder, random flips and turns."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldguide.inference.checks.arguments import checked_int, one_of

STEM = 4
"""Up to how many pixels an encoder halves images."""


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3 with batch normalisation around a sum (He et al. 2016).

    Parameters
    ----------
    n_in, n_out : int
        Channels.
    stride : int
        2 halves height and width.
    """

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(n_out)
        self.shorter: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shorter = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shorter(x))


class ResidualEncoder(nn.Module):
    """Residual network from images [..., C, S, S] to features [..., R], the means over what is left of the image.

    Parameters
    ----------
    n_channels : int
        C.
    widths : tuple of int
        Channels of each stage; all but the first halve the image. The last is R.
    depth : int
        Blocks in each stage.
    stem : {"small", "imagenet"}
        What comes before them: a convolution of 3 x 3 that halves the image, or that of ResNet-18 (7 x 7, halved, and
        halved again by the largest of neighbours), of which ``widths=(64, 128, 256, 512), depth=2`` are the stages.

    Attributes
    ----------
    width : int
        R.
    """

    def __init__(
        self, n_channels: int, widths: tuple[int, ...] = (16, 32, 64), depth: int = 1, stem: str = "small"
    ) -> None:
        super().__init__()
        one_of("stem", stem, ("small", "imagenet"))
        widths = tuple(checked_int("widths", width, 1) for width in widths)
        if not widths:
            raise ValueError("widths names no stage: give the channels of each, such as (16, 32, 64)")
        self.width = widths[-1]
        kernel = 3 if stem == "small" else 7
        parts: list[nn.Module] = [
            nn.Conv2d(n_channels, widths[0], kernel, 2, kernel // 2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        if stem != "small":
            parts.append(nn.MaxPool2d(3, 2, 1))
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(depth):
                parts.append(ResidualBlock(before, width, 2 if stage and not block else 1))
                before = width
        self.parts = nn.Sequential(*parts)

    def forward(self, images: Tensor) -> Tensor:
        lead = images.shape[:-3]
        x = images.reshape(-1, *images.shape[-3:]).contiguous(memory_format=torch.channels_last)
        return self.parts(x).mean((-2, -1)).reshape(*lead, -1)


class ImageDecoder(nn.Module):
    """Network from latents [..., D] to images [..., C, S, S]: doubled from 4 x 4 by nearest neighbours, convolved.

    Parameters
    ----------
    n_latent, n_channels, size : int
        D, C and S; where S is no power of two times four, the image is cut from the next.
    width : int
        Channels of the last stage; each before it has twice as many, up to eight times.
    """

    def __init__(self, n_latent: int, n_channels: int, size: int, width: int = 16) -> None:
        super().__init__()
        doublings = max(0, -(-size // STEM) - 1).bit_length()
        widths = [width * 2 ** min(3, doublings - k) for k in range(doublings + 1)]
        self.size, self.start = size, nn.Linear(n_latent, widths[0] * STEM**2)
        stages = [
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.stages = nn.Sequential(*stages, nn.Conv2d(widths[-1], n_channels, 3, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        lead = z.shape[:-1]
        x = F.relu(self.start(z)).reshape(-1, self.start.out_features // STEM**2, STEM, STEM)
        images = self.stages(x.contiguous(memory_format=torch.channels_last))
        first = (images.shape[-1] - self.size) // 2
        images = images[..., first : first + self.size, first : first + self.size]
        return images.reshape(*lead, *images.shape[1:])


def turned_and_flipped(images: Tensor) -> Tensor:
    """Return each image [B, C, S, S] turned by a random number of quarters and flipped or not: all eight alike."""
    quarters = torch.randint(0, 4, (len(images),), device=images.device)
    flipped = torch.randint(0, 2, (len(images),), device=images.device).bool()
    out = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    for quarter in (1, 2, 3):
        out = torch.where((quarters == quarter)[:, None, None, None], torch.rot90(out, quarter, (-2, -1)), out)
    return out
