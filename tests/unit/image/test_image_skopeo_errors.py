# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  # quotations
"""What skopeo said on real machines (1.9 and 1.18), and what a caller makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    HyperError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from hyperd.image.skopeo_errors import last_words, translate


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('pinging container registry 127.0.0.1:1: Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
         UnavailableError),
        ("pinging container registry x.invalid: dial tcp: lookup x.invalid on 10.0.0.1:53: no such host", UnavailableError),
        ("pinging container registry r: dial tcp 10.0.0.1:443: i/o timeout", UnavailableError),
        ("pinging container registry r: http: server gave HTTP response to HTTPS client", UnavailableError),
        ("pinging container registry r: tls: failed to verify certificate: x509: certificate signed by unknown authority",
         UnavailableError),
        ("reading manifest nope in 127.0.0.1:5000/bb: manifest unknown: manifest unknown", NotFoundError),
        ("reading manifest latest in docker.io/library/nope: name unknown: repository name not known to registry", NotFoundError),
        ("reading manifest latest in docker.io/x/y: errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required", DeniedError),
        ("unable to retrieve auth token: invalid username/password: unauthorized", DeniedError),
        ("reading manifest latest in docker.io/library/alpine: toomanyrequests: You have reached your pull rate limit",
         UnavailableError),
        ("writing blob: write /x/oci-put-blob1: no space left on device", ExhaustedError),
        ("Source image rejected: Running image docker://x is rejected by policy.", DeniedError),
        ("registry x is blocked in /etc/containers/registries.conf", DeniedError),
        ("writing blob: Digest did not match, expected sha256:aa, got sha256:bb", UnavailableError),
        ("no image found in manifest list for architecture amd64, variant \"\", OS linux", UnsupportedError),
        ("no image found in image index for architecture amd64, variant \"\", OS linux", UnsupportedError),
        ("unsupported docker v2s2 media type: \"application/x\"", UnsupportedError),
        ("open /nonexistent/index.json: no such file or directory", NotFoundError),
        ("loading tar component manifest.json: archive/tar: invalid tar header", InvalidError),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", UnavailableError),
        ("something that nobody has seen before", UnavailableError),
    ],
)  # fmt: skip
def test_last_words_have_a_meaning(said, kind):
    quoted = said.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    error = translate(f'time="2026-01-01T00:00:00Z" level=fatal msg="{quoted}"\n', "x")
    assert type(error) is kind
    assert error.evidence == said
    assert error.subject == "x"


@given(st.text())
def test_any_words_give_a_bounded_error(said):
    error = translate(said, "x")
    assert isinstance(error, HyperError)
    assert len(error.evidence) <= 1000
    assert len(last_words(f"level=fatal msg={said!r}")) <= 1000
