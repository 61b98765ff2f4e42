# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.image.reference import (
    Named,
    Transport,
    canonical,
    id_prefix,
    is_full_id,
    parse_digest,
    parse_named,
    parse_source,
)

SHA = "sha256:" + "a" * 64
COMPONENT = st.from_regex(r"[a-z0-9]{1,8}(?:(?:[._]|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
DOMAIN = st.one_of(
    st.from_regex(r"[a-z0-9]{1,8}\.[a-z]{2,5}(?::[0-9]{1,5})?", fullmatch=True),
    st.sampled_from(["localhost", "localhost:5000", "[::1]:5000", "127.0.0.1:80"]),
)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/user/app:1", "docker.io/user/app:1"),
        ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("[::1]:5000/app:x", "[::1]:5000/app:x"),
        ("Registry/app", "Registry/app:latest"),
        ("app:5000/x", "app:5000/x:latest"),
        (f"alpine@{SHA}", f"docker.io/library/alpine@{SHA}"),
        (f"alpine:3@{SHA}", f"docker.io/library/alpine:3@{SHA}"),
        ("oci:latest", "docker.io/library/oci:latest"),
        ("a_b__c-d---e.f", "docker.io/library/a_b__c-d---e.f:latest"),
    ],
)
def test_short_names_are_dockers(short, full):
    source = parse_source(short)
    assert source.transport is Transport.DOCKER
    assert str(source.named) == str(source) == full


@pytest.mark.parametrize(
    "text",
    ["", ":", "/", "a//b", "Alpine", "alpine:", "alpine:-x", "alpine:" + "x" * 129, "alpine@sha256:abc", "a b",
         "a\n",
     "-a", "a-", "a..b", "a___b", "a" * 300, "f" * 64, "alpine@", "host.io/",
         "é", "http://x/y", "a:b:c",
     "alpine@sha256:" + "A" * 64, "x" * 5000, "-h.io/x", "h_.io/x", "oci-archive:relative", "docker-archive:",
         "oci:./dir",
     "docker-archive:/x:Upper Case", "oci:/a\x00b"],
)  # fmt: skip
def test_what_docker_refuses_is_refused(text):
    with pytest.raises(InvalidError):
        parse_source(text)


@pytest.mark.parametrize(
    "text", ["dir:/etc", "oci:relative/dir", "https://example.org/x", "oci-archive:x.tar"]
)
def test_where_no_image_can_come_from_is_told_with_where_it_can(text):
    with pytest.raises(InvalidError) as caught:
        parse_source(text)
    assert "oci:/DIR" in caught.value.hint


def test_a_familiar_name_is_as_short_as_dockers():
    for text in ("alpine:3", "user/app:1", "example.org/x:1", f"alpine@{SHA}", "docker.io/library/a/b:1"):
        assert parse_named(text).familiar == text.removeprefix("docker.io/")


def test_other_digests_are_named_unsupported():
    with pytest.raises(UnsupportedError):
        parse_named("alpine@sha512:" + "a" * 128)


@pytest.mark.parametrize(
    ("text", "transport", "path", "inner", "named"),
    [
        ("docker://alpine", Transport.DOCKER, "", "", "docker.io/library/alpine:latest"),
        ("docker-daemon:alpine:3", Transport.DOCKER_DAEMON, "", "", "docker.io/library/alpine:3"),
        ("docker-archive:/x.tar", Transport.DOCKER_ARCHIVE, "/x.tar", "", None),
        ("docker-archive:/x.tar:a/b:1", Transport.DOCKER_ARCHIVE, "/x.tar", "a/b:1", "docker.io/a/b:1"),
        ("docker-archive:/x.tar:@1", Transport.DOCKER_ARCHIVE, "/x.tar", "@1", None),
        ("oci-archive:/x.tar:latest", Transport.OCI_ARCHIVE, "/x.tar", "latest", None),
        ("oci:/dir:example.org/x:1", Transport.OCI, "/dir", "example.org/x:1", "example.org/x:1"),
        ("oci:/dir", Transport.OCI, "/dir", "", None),
    ],
)
def test_transports_are_skopeos(text, transport, path, inner, named):
    source = parse_source(text)
    assert (source.transport, source.path, source.inner) == (transport, path, inner)
    assert (None if source.named is None else str(source.named)) == named


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("localhost/x", True), ("localhost:5000/x", True), ("127.0.0.1:5000/x", True), ("127.1.2.3/x", True),
     ("[::1]:5000/x", True), ("example.org/x", False), ("alpine", False), ("10.0.0.1:5000/x", False),
     ("localhost.example.org/x", False)],
)  # fmt: skip
def test_only_loopback_registries_speak_plain_http_unasked(text, loopback):
    assert parse_source(text).is_loopback is loopback


@given(DOMAIN, st.lists(COMPONENT, min_size=1, max_size=3), TAG, st.booleans())
def test_a_full_name_is_read_back_as_itself(domain, components, tag, with_digest):
    text = f"{domain}/{'/'.join(components)}:{tag}" + (f"@{SHA}" if with_digest else "")
    named = parse_named(text)
    assert str(named) == text
    assert named.repository == f"{domain}/{'/'.join(components)}"
    assert canonical(named).tag == ("" if with_digest else tag)


@given(st.text(max_size=60) | st.from_regex(r"[a-zA-Z0-9:/@._ -]{0,40}", fullmatch=True))
def test_any_text_is_a_reference_or_a_clear_error(text):
    try:
        named = parse_named(text)
    except HyperError:
        pass
    else:
        assert parse_named(str(named)) == named
        assert isinstance(named, Named)
        assert not {"\x00", "\n", " ", ".."} & set(str(named).split("/"))


def test_ids_are_known_by_their_digits():
    assert id_prefix("sha256:ab") == id_prefix("ab") == "ab"
    assert [id_prefix(text) for text in ("", "xyz", "AB", "sha256:", "a" * 65)] == ["", "", "", "", ""]
    assert is_full_id("a" * 64)
    assert is_full_id(SHA)
    assert not is_full_id("a" * 63)


@pytest.mark.parametrize(
    "text", [None, 5, "", "sha256:", SHA + "/../x", "sha256:" + "A" * 64, "sha512:" + "a" * 128, SHA + "\n"]
)
def test_a_digest_that_could_be_a_path_is_none(text):
    with pytest.raises(InvalidError):
        parse_digest(text, "digest")
