"""The mean response to each level with its posterior band."""

import numpy as np
import pytest

from fieldguide.decisions import response_curve


def test_the_curve_is_the_mean_over_customers_in_each_draw():
    rng = np.random.default_rng(0)
    mean = np.array([0.2, 0.5, 0.6])
    shared, own = rng.normal(0, 0.02, (4000, 1, 3)), rng.normal(0, 0.3, (4000, 50, 3))
    found = response_curve(mean + shared + own, [0, 1.5, 3], ["none", "one", "two"], level=0.8)
    spread = 1.2816 * (0.02**2 + 0.3**2 / 50) ** 0.5  # of the mean over 50 customers, not of one
    np.testing.assert_allclose(found.table["response"], mean, atol=0.003)
    np.testing.assert_allclose(found.table["high"] - found.table["low"], 2 * spread, rtol=0.06)
    np.testing.assert_allclose(found.table["step"][1:], [0.3, 0.1], atol=0.004)
    np.testing.assert_allclose((found.table["step_high"] - found.table["step_low"])[1:], 2 * 2**0.5 * spread, rtol=0.06)
    assert list(found.table.index) == ["none", "one", "two"] and np.isnan(found.table["step"].iloc[0])
    axis = found.plot().axes[0]
    assert list(axis.lines[0].get_xdata()) == [0, 1.5, 3] and "80%" in axis.get_ylabel()


def test_bad_draws():
    good = np.zeros((5, 3, 2))
    bad = good.copy()
    bad[1, 2, 0] = np.nan
    for arguments, message in (
        ((good[0],), r"draws must be of shape \(S, N, K\), not \(3, 2\)"),
        ((bad,), r"draw \[1, 2, 0\] is not finite"),
        ((good, [0.0, 1.0, 2.0]), r"cost must be one number for each of 2 levels, not of shape \(3,\)"),
        ((good, None, ["a"]), "names are 1 for 2 levels"),
        ((good, None, None, 1.0), "level must be a number in .0, 1., not 1"),
    ):
        with pytest.raises(ValueError, match=message):
            response_curve(*arguments)
