# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.image.budget import Marks, choose
from hyperd.model.image import ImageId

IDS = st.sampled_from([ImageId(f"sha256:{number}") for number in range(8)])


@given(
    st.dictionaries(IDS, st.floats(min_value=0, max_value=100)),
    st.dictionaries(IDS, st.just("a container")),
    st.floats(min_value=0, max_value=100),
)
def test_the_longest_unused_goes_and_never_one_in_use_or_fresh(uses, in_use, before):
    chosen = choose(uses.items(), in_use, before)
    could = {image_id for image_id, when in uses.items() if image_id not in in_use and when < before}
    if chosen is None:
        assert not could
    else:
        assert chosen in could
        assert uses[chosen] == min(uses[each] for each in could)


@pytest.mark.parametrize(("high", "low"), [(1, 2), (-1, -1), (1, -1)])
def test_marks_that_make_no_sense_are_refused(high, low):
    with pytest.raises(ValueError, match="low mark"):
        Marks(high, low)
