"""Convolutional networks: sizes, the published ResNet-18, leading dimensions, and random flips and turns."""

import numpy as np
import pytest
import torch

from fieldguide.catalog.parts.images.networks import ImageDecoder, ResidualBlock, ResidualEncoder, turned_and_flipped


def test_resnet_18_has_its_number_of_parameters():
    """11,176,512 without the last layer, as its authors' code has for three channels."""
    network = ResidualEncoder(3, (64, 128, 256, 512), 2, "imagenet")
    assert sum(p.numel() for p in network.parameters()) == 11_176_512
    with torch.no_grad():
        assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize("size", [16, 28, 32, 50, 96])
def test_images_of_any_size_are_encoded_and_decoded(size):
    images = torch.randn(3, 2, size, size)
    encoder = ResidualEncoder(2, (8, 16))
    r = encoder(images)
    assert r.shape == (3, encoder.width) == (3, 16)
    assert ImageDecoder(16, 2, size, 4)(r).shape == images.shape


def test_leading_dimensions_are_kept():
    encoder, decoder = ResidualEncoder(1, (4,)).eval(), ImageDecoder(4, 1, 8, 4).eval()
    images = torch.randn(2, 3, 1, 8, 8)
    with torch.no_grad():
        r = encoder(images)
        torch.testing.assert_close(r[1], encoder(images[1]))
        torch.testing.assert_close(decoder(r)[1], decoder(r[1]))


def test_a_block_is_the_sum_of_two_convolutions_and_its_input():
    torch.manual_seed(0)
    block, x = ResidualBlock(3, 3).eval(), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        for norm in (block.first_norm, block.second_norm):
            norm.running_var.fill_(1 - norm.eps)
        torch.testing.assert_close(block(x), (block.second(block.first(x).relu()) + x).relu())
        block.second.weight.zero_()
        torch.testing.assert_close(block(x), x.relu())
        assert ResidualBlock(3, 6, 2)(x).shape == (2, 6, 3, 3)


def test_all_eight_flips_and_turns_come_alike_often():
    image = torch.arange(9.0).view(1, 3, 3)
    torch.manual_seed(0)
    many = turned_and_flipped(image.expand(4000, 1, 3, 3))
    kinds, counts = np.unique(many.view(4000, 9).numpy(), axis=0, return_counts=True)
    wanted = {tuple(torch.rot90(x, k, (-2, -1)).ravel().tolist()) for x in (image, image.flip(-1)) for k in range(4)}
    assert {tuple(kind) for kind in kinds.tolist()} == wanted and len(wanted) == 8
    assert counts.min() > 400
