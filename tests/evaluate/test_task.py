"""The uncertainty of a share, against the equation that Wilson's interval solves."""

import numpy as np
import pytest

from sightline.evaluate.task import Share


@pytest.mark.parametrize(("right", "total"), [(0, 10), (8, 10), (17, 20), (400, 400), (15, 25)])
def test_half_width_is_half_of_wilsons_interval(right: int, total: int) -> None:
    # The bounds are those p for which |right/total - p| is 1.96 standard deviations of p itself:
    # (share - p)^2 = z^2 p (1 - p) / n
    share, z2 = right / total, 1.959963985**2
    bounds = np.roots([1 + z2 / total, -(2 * share + z2 / total), share**2])
    assert Share(right, total).half_width == pytest.approx((bounds.max() - bounds.min()) / 2, abs=1e-6)


def test_a_known_interval() -> None:
    # R: prop.test(15, 25, correct = FALSE) gives 0.4074 to 0.7660
    assert Share(15, 25).half_width == pytest.approx((0.7660 - 0.4074) / 2, abs=1e-4)


def test_rows_that_repeat_each_other_do_not_make_a_share_surer() -> None:
    assert Share(80, 100, independent=25).half_width == pytest.approx(Share(20, 25).half_width)
    assert Share(80, 100, independent=25).value == 0.8


def test_nothing_asked_is_nothing_known() -> None:
    assert (Share(0, 0).value, Share(0, 0).half_width) == (0.0, 1.0)
