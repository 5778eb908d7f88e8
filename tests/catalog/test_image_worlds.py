"""Simulated images: what the recipes say of colours, traits, wells, complexes and intensities."""

from typing import Any

import numpy as np
import pytest

from fieldguide.catalog.data.coloured_digits import coloured_digits
from fieldguide.catalog.data.screened_images import TRAITS, ops_sim


def test_colours_say_the_label_in_each_environment_otherwise():
    rng = np.random.default_rng(0)
    digits, labels = rng.integers(0, 256, (400, 3, 3), dtype=np.uint8), rng.integers(0, 10, 400)
    data = coloured_digits(digits, labels, 1)
    images, environment = data.obsm["image"], data.obs["environment"].to_numpy()
    red = environment == "red"
    np.testing.assert_array_equal(images[red, 0], digits[red])
    np.testing.assert_array_equal(images[~red, 1], digits[~red])
    for rows, channel, level in ((red, 1, labels), (red, 2, labels), (~red, 0, 9 - labels), (~red, 2, 9 - labels)):
        np.testing.assert_array_equal(images[rows, channel], np.round(digits * (level / 10)[:, None, None])[rows])
    assert 160 < red.sum() < 240 and data.obs["label"].tolist() == [f"digit {y}" for y in labels]
    plain = coloured_digits(digits, labels, 1, white=True)
    np.testing.assert_array_equal(plain.obsm["image"], np.repeat(digits[:, None], 3, 1))
    assert set(plain.obs["environment"]) == {"white"}


@pytest.mark.parametrize(
    ("digits", "labels", "message"),
    [
        (np.zeros((2, 4, 4)), [0, 1], "digits are uint8"),
        (np.zeros((2, 4), np.uint8), [0, 1], "digits are uint8"),
        (np.zeros((2, 4, 4), np.uint8), [0, 10], "label 10 of image 1"),
        (np.zeros((2, 4, 4), np.uint8), [0], r"labels of shape \(1,\) for 2 digits"),
    ],
    ids=str,
)
def test_what_is_no_digit_is_named(digits: Any, labels: Any, message: str):
    with pytest.raises(ValueError, match=message):
        coloured_digits(digits, labels, 0)


def test_intensities_are_those_of_the_sheet():
    """Mean and spread within cells of each channel, averaged over many wells, to 15 %."""
    screens = [ops_sim(seed, 8, 3, 2, 64, 12, 60).data.obsm["image"] for seed in range(2)]
    mean = np.mean([images.mean((0, 2, 3)) for images in screens], 0)
    spread = np.mean([images.std((2, 3)).mean(0) for images in screens], 0)
    np.testing.assert_allclose(mean, [0.11, 0.30, 0.08, 0.21], rtol=0.15)
    np.testing.assert_allclose(spread, [0.05, 0.10, 0.11, 0.09], rtol=0.15)
    assert all(images.min() >= 0 and images.max() <= 1 for images in screens)


def test_genes_of_a_complex_change_the_same_traits():
    screen = ops_sim(3, 5, 4, 3, 4, 300, 400, size=8)
    obs, traits = screen.data.obs, screen.data.obsm["traits"]
    inside = {name: screen.effects[screen.complexes == name].mean() for name in screen.complexes.unique() if name}
    large = {name: set(effect.index[effect.abs() > 0.4]) for name, effect in inside.items()}
    assert all(len(traits) == 3 for traits in large.values())
    assert max(len(a & b) for k, a in large.items() for j, b in large.items() if k < j) <= 1
    assert (screen.effects[screen.complexes == ""].abs() < 0.8).all(axis=None)
    control = traits[obs["gene"] == "non-targeting"]
    np.testing.assert_allclose(control.mean(0), 0, atol=0.2)
    spread = np.full(len(TRAITS), 0.7)
    spread[[0, 4]] = np.hypot(0.7, 0.9)  # the cell cycle
    np.testing.assert_allclose(control.std(0), spread, rtol=0.15)
    hit = obs["hit"].to_numpy()
    assert hit[obs["gene"] != "non-targeting"].mean() == pytest.approx(0.7, abs=0.03)
    assert not hit[obs["gene"] == "non-targeting"].any()
    for gene in screen.complexes.index[:6]:
        rows = (obs["gene"] == gene).to_numpy()
        moved, wanted = traits[rows & hit].mean(0) - control.mean(0), screen.effects.loc[gene].to_numpy()
        assert np.corrcoef(moved, wanted)[0, 1] > 0.9
        np.testing.assert_allclose(traits[rows & ~hit].mean(0), 0, atol=0.4)


def test_wells_are_even_or_confounded():
    tables = []
    for confounding in (0.0, 3.0):
        obs = ops_sim(0, 2, 3, 0, 4, 60, 60, size=8, confounding=confounding).data.obs
        counts = obs.groupby(["gene", "well"], observed=True).size().unstack(fill_value=0)
        tables.append(counts.to_numpy() / counts.to_numpy().sum(1, keepdims=True))
    assert tables[0].max() < 0.5 < tables[1].max()


def test_pictures_follow_the_traits():
    """Nuclei grow with the first trait, and DNA brightens with the fifth; equal seeds draw equal images."""
    screen = ops_sim(0, 2, 3, 0, 1, 200, 200, size=24)
    dna = screen.data.obsm["image"][:, 2]
    centre = dna[:, 6:18, 6:18]
    area = (centre > 0.15).mean((1, 2))
    radius, intensity = screen.data.obsm["traits"][:, 0], screen.data.obsm["traits"][:, 4]
    assert np.corrcoef(area, radius)[0, 1] > 0.5
    assert np.corrcoef(dna[:, 11:13, 11:13].mean((1, 2)), intensity)[0, 1] > 0.5
    again = ops_sim(0, 2, 3, 0, 1, 200, 200, size=24)
    np.testing.assert_array_equal(again.data.obsm["image"], screen.data.obsm["image"])
    with pytest.raises(ValueError, match="n_complexes=200: there are not so many"):
        ops_sim(0, 200, 1)
