# SPDX-License-Identifier: Apache-2.0
"""What skopeo's last words mean. Its exit status is 1 for everything, so the words are all there is.

The texts are those of skopeo 1.9 (Debian 12) and 1.18 (Debian 13) and of the registries behind them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    HyperError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

_FATAL = re.compile(r'level=fatal msg=("(?:[^"\\]|\\.)*"|\S+)')
MAX_EVIDENCE_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class _Meaning:
    pattern: re.Pattern[str]
    kind: type[HyperError]
    brief: str
    hint: str = ""


def _means(pattern: str, kind: type[HyperError], brief: str, hint: str = "") -> _Meaning:
    return _Meaning(re.compile(pattern, re.IGNORECASE), kind, brief, hint)


# The first that fits wins: causes on this host before those of the registry, the particular before the general.
_MEANINGS = (
    _means("no space left on device|disk quota exceeded", ExhaustedError, "no space left for the image"),
    _means(
        "cannot connect to the docker daemon|docker\\.sock",
        UnavailableError,
        "the Docker daemon does not answer",
    ),
    _means(
        "no image found in (?:manifest list|image index) for architecture|no image found matching",
        UnsupportedError,
        "the image is not made for this architecture",
    ),
    _means("unsupported (?:docker v2s2 )?media type", UnsupportedError, "the image is of an unknown kind"),
    _means("source image rejected|is blocked in", DeniedError, "the host's policy does not allow the image"),
    _means(
        "toomanyrequests|too many requests|StatusCode: 429",
        UnavailableError,
        "the registry's rate limit is reached",
        "log in with `hyper login`, or wait",
    ),
    _means(
        "digest did not match|does not match (?:the )?(?:expected )?digest|digest mismatch|invalid checksum"
        "|blob with digest .* expected to be|size of .* does not match|unexpected EOF",
        UnavailableError,
        "the registry sent a damaged image",
        "its bytes are not those that its digest names; nothing of it was kept",
    ),
    _means(
        "manifest unknown|name unknown|manifest_unknown|name_unknown|repository name not known|not_found"
        "|repository .* not found|blob unknown|(?:status|StatusCode)[: ]+404|404 \\(not found\\)",
        NotFoundError,
        "the registry has no such image",
        "check its name and tag",
    ),
    _means("no such image|reference does not exist", NotFoundError, "there is no such image"),
    _means(
        "unauthorized|authentication required|\\bdenied\\b|invalid username/password|StatusCode: 40[13]|forbidden",
        DeniedError,
        "the registry does not give the image without a login",
        "the image may not exist or may be private: `hyper login REGISTRY`",
    ),
    _means(
        "server gave HTTP response to HTTPS client|x509:|certificate",
        UnavailableError,
        "the registry has no certificate that this host trusts",
        "--tls-insecure allows plain http and unknown certificates",
    ),
    _means(
        "connection refused|no such host|no route to host|network is unreachable|i/o timeout|connection reset"
        "|TLS handshake|deadline exceeded|server misbehaving|temporary failure in name resolution|Client\\.Timeout",
        UnavailableError,
        "the registry cannot be reached",
        "check its name and this host's network",
    ),
    _means(
        "StatusCode: 5\\d\\d|received unexpected HTTP status: 5", UnavailableError, "the registry has failed"
    ),
    _means("no such file or directory|no descriptor found", NotFoundError, "there is no such image file"),
    _means("permission denied", DeniedError, "the image file cannot be read"),
    _means(
        "choose one of the images|more than one image|expected 1 item", InvalidError, "name one of its images"
    ),
    _means(
        "tar header|unrecognized archive|manifest\\.json|invalid character|unmarshal|unexpected end of JSON"
        "|unsupported manifest|invalid reference|invalid tar|supplied manifest",
        InvalidError,
        "this is not an image",
    ),
)


# Where sending means another thing than fetching.
_OF_A_PUSH = (
    _means(
        "digest did not match|does not match (?:the )?(?:expected )?digest|digest mismatch|digest_invalid"
        "|blob with digest .* expected to be",
        UnavailableError,
        "a blob of the image is damaged, here or on its way",
        "`hyper pull` the image again, or try once more",
    ),
    _means(
        "toomanyrequests|too many requests|StatusCode: 429",
        UnavailableError,
        "the registry's rate limit is reached",
        "wait, or log in as somebody with another limit",
    ),
    _means(
        "unauthorized|authentication required|\\bdenied\\b|invalid username/password|StatusCode: 40[13]|forbidden",
        DeniedError,
        "the registry does not take the image",
        "log in as somebody who may write there; the repository's name begins with the owner's at most registries",
    ),
    _means(
        "manifest[_ ]invalid|tag[_ ]invalid|manifest blob unknown|uploading manifest .* (?:StatusCode: )?4\\d\\d",
        InvalidError,
        "the registry does not want this manifest",
    ),
    _means(
        "name[_ ]unknown|repository .* not found|(?:status|StatusCode)[: ]+404|404 \\(not found\\)",
        NotFoundError,
        "the registry has no such repository",
        "check its name; some registries want it made first",
    ),
    _means(
        "method not allowed|StatusCode: 405|unsupported", UnsupportedError, "the registry takes no images"
    ),
    _means(
        "unexpected EOF|\\bEOF\\b|broken pipe|stopped after 10 redirects",
        UnavailableError,
        "the connection to the registry does not last",
    ),
)


def last_words(stderr: str) -> str:
    """skopeo's final message without its log wrapping."""
    found = _FATAL.findall(stderr)
    if not found:
        return stderr.strip()[-MAX_EVIDENCE_LENGTH:]
    said = found[-1]
    if said.startswith('"'):
        try:
            said = json.loads(said)
        except ValueError:
            said = said.strip('"')
    return str(said)[-MAX_EVIDENCE_LENGTH:]


def translate(stderr: str, subject: str) -> HyperError:
    return _translate(stderr, subject, _MEANINGS, "the image cannot be fetched")


def translate_push(stderr: str, subject: str) -> HyperError:
    first = _MEANINGS[:1]  # a full disk of ours
    return _translate(stderr, subject, (*first, *_OF_A_PUSH, *_MEANINGS), "the image cannot be sent")


def _translate(stderr: str, subject: str, meanings: Sequence[_Meaning], otherwise: str) -> HyperError:
    said = last_words(stderr)
    for meaning in meanings:
        if meaning.pattern.search(said):
            return meaning.kind(meaning.brief, subject=subject, evidence=said, hint=meaning.hint)
    return UnavailableError(otherwise, subject=subject, evidence=said)
