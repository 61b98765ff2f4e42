# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what is written is read back, and nothing else is read."""

import dataclasses
import hashlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.snapshot import Compatibility, Manifest, SavedFile, SnapshotId, SnapshotKind
from hyperd.snapshot import manifest as manifests
from tests.saved import COMPATIBILITY

texts = st.text(st.characters(codec="utf-8"), max_size=40)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
compatibilities = st.builds(
    Compatibility,
    **{
        field.name: texts if field.type is str else st.integers(-(1 << 70), 1 << 70)
        for field in dataclasses.fields(Compatibility)
    },
)
saved_files = st.lists(
    st.builds(
        SavedFile,
        st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True),
        st.integers(0, manifests.MAX_FILE_BYTES),
        hexes,
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda file: file.name,
)
all_manifests = st.builds(
    Manifest,
    hexes.map(SnapshotId),
    st.sampled_from(["", "one", "a.b-c_D9"]),
    st.sampled_from(SnapshotKind),
    st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 2)),  # noqa: DTZ001  # Hypothesis wants it so
    compatibilities,
    saved_files.map(tuple),
    st.dictionaries(texts, texts, max_size=4),
)
ONE = Manifest(
    SnapshotId("a" * 64),
    "one",
    SnapshotKind.SANDBOX,
    datetime(2026, 1, 1, tzinfo=UTC),
    COMPATIBILITY,
    (SavedFile("ram", 4096, "b" * 64),),
    {"image": "alpine"},
)


@given(all_manifests)
def test_what_is_written_is_read_back(manifest):
    assert manifests.decode(manifests.encode(manifest)) == manifest


@given(st.data())
def test_any_change_of_the_bytes_is_refused(data):
    text = manifests.encode(ONE)
    at = data.draw(st.integers(0, len(text) - 1))
    cut = data.draw(st.integers(0, 8))
    changed = text[:at] + data.draw(st.binary(max_size=8)) + text[at + cut :]
    if changed != text:
        with pytest.raises((InvalidError, UnsupportedError)):
            manifests.decode(changed)


@given(st.binary(max_size=200))
def test_bytes_are_no_manifest(data):
    with pytest.raises(InvalidError):
        manifests.decode(data)


def sealed(tree):
    """With a digest that fits, as one who wants to be believed would write it."""
    digest = hashlib.sha256(manifests._canonical(tree)).hexdigest()
    return manifests._canonical({**tree, "sha256": digest})


def tree_of(manifest):
    tree = json.loads(manifests.encode(manifest))
    del tree["sha256"]
    return tree


def test_the_helper_of_these_tests_writes_what_is_read():
    assert manifests.decode(sealed(tree_of(ONE))) == ONE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], 0),
        (["version"], "1"),
        (["version"], True),
        (["snapshot_id"], "A" * 64),
        (["snapshot_id"], "../" + "a" * 61),
        (["name"], "a/b"),
        (["name"], None),
        (["name"], "\ud800"),
        (["kind"], "other"),
        (["kind"], 1),
        (["created_at"], "yesterday"),
        (["created_at"], "2026-01-01T00:00:00"),
        (["created_at"], "2026-01-01T00:00:00+01:00"),
        (["created_at"], "2026-01-01"),
        (["extra"], 1),
        (["compatibility"], []),
        (["compatibility", "vcpus"], "1"),
        (["compatibility", "vcpus"], 1.0),
        (["compatibility", "vcpus"], True),
        (["compatibility", "extra"], 1),
        (["files"], {}),
        (["files"], []),
        (["files"], [{"name": "ram", "size_bytes": 0, "sha256": "b" * 64}] * 2),
        (["files"], [{"name": f"f{n}", "size_bytes": 0, "sha256": "b" * 64} for n in range(17)]),
        (["files", 0], "ram"),
        (["files", 0, "name"], "../ram"),
        (["files", 0, "name"], "manifest.json"),
        (["files", 0, "size_bytes"], -1),
        (["files", 0, "size_bytes"], 1 << 60),
        (["files", 0, "sha256"], "b" * 63),
        (["files", 0, "extra"], 1),
        (["source"], []),
        (["source", "image"], 1),
        (["source", "image"], "\udfff"),
    ],
)
def test_a_manifest_that_means_to_deceive_is_refused_also_with_a_digest_that_fits(path, value):
    tree = tree_of(ONE)
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InvalidError):
        manifests.decode(sealed(tree))


@pytest.mark.parametrize("key", [key for key in tree_of(ONE) if key != "version"])
def test_a_field_that_is_missing_is_named(key):
    tree = tree_of(ONE)
    del tree[key]
    with pytest.raises(InvalidError, match=key):
        manifests.decode(sealed(tree))


def test_what_a_newer_hyperd_wrote_is_told_apart():
    with pytest.raises(UnsupportedError, match="version 2, this hyperd reads 1"):
        manifests.decode(sealed({**tree_of(ONE), "version": 2, "more": []}))


def test_deep_or_huge_json_is_refused():
    for text in (b"[" * 100_000, b"9" * 10_000, b'{"version":' + b"9" * 5000 + b"}", b" " * (2 << 20)):
        with pytest.raises(InvalidError):
            manifests.decode(text)


def test_a_manifest_too_large_to_be_read_is_never_written():
    with pytest.raises(InvalidError, match="larger than"):
        manifests.encode(dataclasses.replace(ONE, source={"image": "x" * manifests.MAX_BYTES}))
