# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.image.config import parse_config, parse_time
from hyperd.image.manifest import MAX_LAYERS, Index, Manifest, choose, parse_manifest
from hyperd.image.platform import host_platform, parse_platform, preference, runs
from hyperd.model.image import Platform
from tests import images

BUILT = images.build([[images.file("a", "b")]])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=8)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def manifest(**changes) -> bytes:
    return json.dumps(json.loads(BUILT.manifest) | changes).encode()


def layer(**changes) -> Any:
    return json.loads(BUILT.manifest)["layers"][0] | changes


def test_an_image_manifest_is_read():
    parsed = parse_manifest(BUILT.manifest, "x")
    assert isinstance(parsed, Manifest)
    assert parsed.config.digest == BUILT.image_id
    assert [item.digest for item in parsed.layers] == list(BUILT.layer_digests)


def test_without_media_types_the_shape_tells():
    body = json.loads(BUILT.manifest)
    del body["mediaType"]
    assert isinstance(parse_manifest(json.dumps(body).encode(), "x"), Manifest)
    assert isinstance(parse_manifest(b'{"schemaVersion": 2, "manifests": []}', "x"), Index)


@pytest.mark.parametrize(
    ("raw", "kind", "says"),
    [
        (b"", InvalidError, "not JSON"),
        (b"[]", InvalidError, "not a JSON object"),
        (b"[" * 100_000, InvalidError, "not JSON"),
        (b" " * (5 << 20), InvalidError, "larger than 4 MiB"),
        (b'{"schemaVersion": 1}', UnsupportedError, "schema 1"),
        (b'{"schemaVersion": 3}', InvalidError, "schemaVersion"),
        (manifest(manifests=[]), InvalidError, "index and an image at once"),
        (manifest(mediaType="application/x"), UnsupportedError, "unknown kind"),
        (manifest(mediaType=images.OCI_INDEX), UnsupportedError, "unknown kind"),
        (manifest(config=None), InvalidError, "config is not an object"),
        (manifest(config=layer()), UnsupportedError, "artifact"),
        (manifest(layers={}), InvalidError, "no list of layers"),
        (manifest(layers=[layer(size=-1)]), InvalidError, "no sensible size"),
        (manifest(layers=[layer(size=True)]), InvalidError, "no sensible size"),
        (manifest(layers=[layer(size=1 << 60)]), InvalidError, "no sensible size"),
        (manifest(layers=[layer(digest="sha256:../../etc")]), InvalidError, "not a SHA-256 digest"),
        (manifest(layers=[layer(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")]),
         UnsupportedError, "foreign"),
        (manifest(layers=[layer(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]),
         UnsupportedError, "foreign"),
        (manifest(layers=[layer(mediaType="application/vnd.oci.image.layer.v1.tar+gzip+encrypted")]),
         UnsupportedError, "unknown kind"),
        (manifest(layers=[layer()] * (MAX_LAYERS + 1)), UnsupportedError, "at most"),
    ],
)  # fmt: skip
def test_what_is_not_a_runnable_image_is_refused(raw, kind, says):
    with pytest.raises(kind, match=says) as caught:
        parse_manifest(raw, "registry/x:1")
    assert caught.value.subject == "registry/x:1"


@given(JSON, st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests"]))
def test_any_value_anywhere_is_an_image_or_a_clear_error(value, key):
    for body in (value, json.loads(BUILT.manifest) | {key: value}):
        with contextlib.suppress(HyperError):
            parse_manifest(json.dumps(body).encode(), "x")


@given(JSON, st.sampled_from(["config", "rootfs", "history", "created", "os", "architecture", "author"]))
def test_any_config_is_read_or_a_clear_error(value, key):
    for body in (value, json.loads(BUILT.config) | {key: value}):
        with contextlib.suppress(HyperError):
            parse_config(json.dumps(body).encode(), "x")


@given(
    JSON,
    st.sampled_from(["Env", "Cmd", "Labels", "Volumes", "User", "WorkingDir", "ExposedPorts", "StopSignal"]),
)
def test_any_inner_config_is_read_or_a_clear_error(value, key):
    with contextlib.suppress(HyperError):
        parse_config(json.dumps({"config": {key: value}}).encode(), "x")


def test_a_config_becomes_what_a_runtime_acts_on():
    inner: dict[str, Any] = {
        "Env": ["A=b"], "Entrypoint": ["/x"], "Cmd": None, "User": "app", "WorkingDir": "/w", "Labels": {"k": "v"},
        "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "StopSignal": "SIGINT",
    }  # fmt: skip
    parsed = parse_config(images.build([], config=inner).config, "x")
    config = parsed.config
    assert (config.env, config.entrypoint, config.cmd, config.user) == (("A=b",), ("/x",), (), "app")
    assert (config.labels, config.exposed_ports, config.volumes) == ({"k": "v"}, ("80/tcp",), ("/data",))
    assert parsed.created_at == datetime(2026, 1, 2, 3, 4, 5, 123456, UTC)
    assert parsed.history[-1].empty_layer


@pytest.mark.parametrize("text", ["a\x00b", "\ud800"])
def test_text_that_no_process_could_get_is_refused(text):
    with pytest.raises(InvalidError):
        parse_config(json.dumps({"config": {"Env": [text]}}).encode(), "x")


@pytest.mark.parametrize(
    "text", ["", "yesterday", "0001-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "9999-12-31T23:59:59-23:59"]
)
def test_nonsense_times_are_unknown(text):
    assert parse_time(text) is None


@given(st.datetimes(min_value=datetime(1970, 1, 1)))  # noqa: DTZ001
def test_times_are_read_to_the_microsecond(when):
    assert parse_time(when.isoformat(timespec="microseconds") + "Z") == when.replace(tzinfo=UTC)


def test_an_index_gives_the_closest_platform():
    offers = [("linux", "arm", "v5"), ("linux", "arm", "v7"), ("linux", "arm64", "v8"), ("linux", "amd64", ""),
              ("windows", "amd64", "")]  # fmt: skip
    built = [images.build([[images.file(str(number))]]) for number in range(len(offers))]
    children = [
        (image, dict(zip(("os", "architecture", "variant"), offer, strict=True)))
        for image, offer in zip(built, offers, strict=True)
    ]
    index = parse_manifest(images.index(children).manifest, "x")
    assert isinstance(index, Index)
    assert len(index.children) == len(offers)  # the attestation is not among them
    for wanted, number in (
        ("linux/amd64", 3),
        ("arm64", 2),
        ("linux/arm", 1),
        ("linux/arm/v5", 0),
        ("windows/amd64", 4),
    ):
        assert choose(index, parse_platform(wanted), "x").digest == built[number].manifest_digest
    with pytest.raises(UnsupportedError, match=r"linux/amd64.*wanted is linux/riscv64"):
        choose(index, Platform("linux", "riscv64"), "x")


def test_platforms_that_run_here():
    amd64 = Platform("linux", "amd64")
    assert runs(Platform("", ""), amd64)
    assert not runs(Platform("linux", "amd64", "v3"), amd64)
    assert preference(Platform("linux", "amd64"), amd64) < preference(Platform("linux", "amd64", "v1"), amd64)
    assert host_platform().os == "linux"


@pytest.mark.parametrize("text", ["", "linux", "a/b/c/d", "linux/", "li nux/amd64"])
def test_a_malformed_platform_is_said(text):
    with pytest.raises(InvalidError):
        parse_platform(text)
