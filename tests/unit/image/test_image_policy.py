# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import DeniedError
from hyperd.image.policy import parse_policy, read_policy
from hyperd.image.reference import parse_source
from hyperd.model.image import Requirement

ACCEPT = [{"type": "insecureAcceptAnything"}]
SIGNED = [{"type": "signedBy", "keyType": "GPGKeys", "keyData": "a2V5"}]


def policy(scopes=(), default=ACCEPT):
    return parse_policy(json.dumps({"default": default, "transports": dict(scopes)}).encode())


@pytest.mark.parametrize(
    ("source", "scopes"),
    [
        (
            "alpine",
            ["docker.io/library/alpine:latest", "docker.io/library/alpine", "docker.io/library", "docker.io", "*.io"],
        ),
        ("reg.example.org:5000/a/b:1", ["reg.example.org:5000/a/b", "reg.example.org:5000", "*.example.org", "*.org"]),
        ("x.y/a@sha256:" + "0" * 64, ["x.y/a@sha256:" + "0" * 64, "x.y/a"]),
        ("oci:/srv/images/one:tag", ["/srv/images/one:tag", "/srv/images/one", "/srv/images", "/srv", ""]),
        ("docker-archive:/srv/a.tar", [""]),
        ("docker-daemon:alpine", ["docker.io/library/alpine:latest", "docker.io"]),
    ],
)  # fmt: skip
def test_the_most_particular_scope_decides(source, scopes):
    """In the order of containers-policy.json(5): of those that are there, the first."""
    wanted = parse_source(source)
    transport = str(wanted.transport)
    for position in range(len(scopes)):
        present = dict.fromkeys(scopes[position:], SIGNED)
        assert policy({transport: present}).verdict(wanted).scope == f"{transport}:{scopes[position]}"
    for elsewhere in ({transport: {"other.example/x": SIGNED}}, {"atomic": {"": SIGNED}}):
        assert policy(elsewhere).verdict(wanted).scope == "default"


def test_only_a_policy_that_asks_nothing_of_anybody_asks_nothing():
    assert policy().asks_nothing
    assert policy({"docker": {"": ACCEPT, "docker.io": ACCEPT}}).asks_nothing
    assert not policy({"docker": {"docker.io/library/alpine": SIGNED}}).asks_nothing
    assert not policy(default=[{"type": "reject"}]).asks_nothing
    assert not policy(default=ACCEPT + SIGNED).asks_nothing


def test_requirements_name_their_keys(tmp_path):
    key = tmp_path / "key.pub"
    key.write_bytes(b"key")
    fingerprint = "sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"
    asked = [
        {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": [str(key), "/not/there"]},
        {"type": "sigstoreSigned", "keyData": "key", "signedIdentity": {"type": "matchRepository"}},
    ]
    assert policy(default=asked).verdict(parse_source("alpine")).requirements == (
        Requirement("signedBy", (f"{key} {fingerprint}", "/not/there")),
        Requirement("sigstoreSigned", (f"inline {fingerprint}",), "matchRepository"),
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
        b'{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"a.b": []}}}',
        b'{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": []}}',
    ],
)
def test_what_is_no_policy_denies(tmp_path, raw):
    path = tmp_path / "policy.json"
    path.write_bytes(raw)
    with pytest.raises(DeniedError, match="cannot be read"):
        read_policy(path)


def test_a_policy_that_is_not_there_denies(tmp_path):
    with pytest.raises(DeniedError, match="cannot be read"):
        read_policy(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=20,
)


@given(default=JSON, transports=st.dictionaries(st.sampled_from(["docker", "oci"]), JSON), requirement=JSON)
def test_any_text_is_a_policy_or_an_error_and_every_policy_has_a_verdict(default, transports, requirement):
    listed = {"default": [{"type": requirement, "keyPaths": default}]}
    for body in ({"default": default, "transports": transports}, listed):
        try:
            read = parse_policy(json.dumps(body).encode())
        except ValueError:
            continue
        for source in ("alpine", "oci:/a/b:c", "oci-archive:/x"):
            assert read.verdict(parse_source(source)).requirements
        if read.asks_nothing:
            assert set(read.verdict(parse_source("alpine")).requirements) == {
                Requirement("insecureAcceptAnything")
            }
