# SPDX-License-Identifier: Apache-2.0
from hypothesis import given
from hypothesis import strategies as st

from hyperd.image.download import Estimate
from hyperd.image.manifest import Descriptor
from hyperd.model.image import Digest


def layers(*sizes):
    return [Descriptor(Digest(f"sha256:{number:064x}"), size, "") for number, size in enumerate(sizes)]


def test_files_are_matched_in_the_order_of_their_start():
    estimate, missing = Estimate(), layers(100, 200, 300)
    assert estimate.update({"x": 10, "y": 20}, missing) == {missing[0].digest: 10, missing[1].digest: 20}
    # The first is whole and gone; the second keeps its layer; a new one gets the next.
    assert estimate.update({"y": 50, "z": 5}, missing[1:]) == {missing[1].digest: 50, missing[2].digest: 5}


def test_a_file_larger_than_its_layer_is_another_one():
    estimate, missing = Estimate(), layers(100, 200)
    estimate.update({"x": 10}, missing)
    assert estimate.update({"x": 150}, missing) == {missing[1].digest: 150}


@given(
    st.lists(st.integers(0, 50), max_size=6),
    st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 80), max_size=6), max_size=6),
)
def test_no_layer_has_two_files_or_more_bytes_than_it_has(totals, looks):
    estimate, missing = Estimate(), layers(*totals)
    for sizes in looks:
        done = estimate.update(sizes, missing)
        assert len(set(estimate.pairs.values())) == len(estimate.pairs)
        assert all(done[layer.digest] <= layer.size_bytes for layer in missing if layer.digest in done)
