# SPDX-License-Identifier: Apache-2.0
import pytest

from hyperd.config import Config, ImageConfig
from hyperd.errors import InvalidError
from hyperd.image import Marks
from hyperd.settings import image_budget


@pytest.mark.parametrize(
    ("high", "low", "marks"),
    [(0, 0, Marks()), (1000, 0, Marks(1000 << 20, 800 << 20)), (1000, 1000, Marks(1000 << 20, 1000 << 20))],
)
def test_the_low_mark_is_four_fifths_unless_it_is_said(high, low, marks):
    assert image_budget(Config(image=ImageConfig(budget_mib=high, budget_low_mib=low))) == marks


@pytest.mark.parametrize(("high", "low"), [(0, 1), (10, 11), (-1, 0), (10, -1)])
def test_marks_that_make_no_sense_stop_the_daemon_with_their_names(high, low):
    with pytest.raises(InvalidError) as caught:
        image_budget(Config(image=ImageConfig(budget_mib=high, budget_low_mib=low)))
    assert "[image] budget_low_mib" in caught.value.subject
