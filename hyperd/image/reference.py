# SPDX-License-Identifier: Apache-2.0
"""What a user may write to name an image, by Docker's rules (github.com/distribution/reference).

alpine                      docker.io/library/alpine:latest
user/app:1                  docker.io/user/app:1
localhost/app, host:5000/x  a registry's name holds a dot or a colon, or is "localhost"
app@sha256:...              by content; a tag beside a digest says nothing
docker-archive:PATH[:NAME]  oci-archive:PATH[:NAME]  oci:DIR[:NAME]  docker-daemon:NAME   (skopeo's transports)
"""

import enum
import ipaddress
import re
from dataclasses import dataclass

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.image import Digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "library"
BUILDER_REPOSITORY = "docker.io/hyper/builder"  # setup/builder.py
DEFAULT_TAG = "latest"
MAX_NAME_LENGTH = 255
MAX_REFERENCE_LENGTH = 4096

_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(
    rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII
)
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_ANY_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{1,64}", re.ASCII)
_HINT = "a reference is [REGISTRY/]NAME[:TAG][@sha256:DIGEST] in lower case"


_SUPPORTED = (
    "supported are NAME[:TAG], docker-archive:/FILE[:NAME], oci-archive:/FILE[:NAME], oci:/DIR[:NAME] and "
    "docker-daemon:NAME"
)


class Transport(enum.StrEnum):
    DOCKER = "docker"
    DOCKER_ARCHIVE = "docker-archive"
    OCI_ARCHIVE = "oci-archive"
    OCI = "oci"
    DOCKER_DAEMON = "docker-daemon"


@dataclass(frozen=True, slots=True)
class Named:
    """A full name with a tag, a digest, or both."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        return f"{self.registry}/{self.path}"

    @property
    def familiar(self) -> str:
        """As short as Docker shows it: docker.io/library/alpine:1 is alpine:1."""
        prefix = f"{DEFAULT_REGISTRY}/"
        short = str(self).removeprefix(prefix)
        official = short.removeprefix(f"{DEFAULT_NAMESPACE}/")
        return official if self.registry == DEFAULT_REGISTRY and "/" not in official else short

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return self.repository + tag + digest


@dataclass(frozen=True, slots=True)
class Source:
    """Where a pull gets its image. ``named`` is what it will be called here, when its name says so."""

    transport: Transport
    named: Named | None
    path: str = ""  # of an archive or a layout
    inner: str = ""  # which image in it, as the transport writes it

    @property
    def is_loopback(self) -> bool:
        return (
            self.transport is Transport.DOCKER
            and self.named is not None
            and is_loopback_host(self.named.registry)
        )

    def __str__(self) -> str:
        if self.named is not None and self.transport in (Transport.DOCKER, Transport.DOCKER_DAEMON):
            return (
                f"{self.transport}:{self.named}"
                if self.transport is Transport.DOCKER_DAEMON
                else str(self.named)
            )
        return f"{self.transport}:{self.path}" + (f":{self.inner}" if self.inner else "")


def parse_named(text: str) -> Named:
    """Raises InvalidError, UnsupportedError (a digest that is not SHA-256)."""
    if not text or len(text) > MAX_REFERENCE_LENGTH:
        raise _malformed(text, "it is empty" if not text else "it is too long")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        if _ANY_DIGEST.fullmatch(digest) and not digest.startswith("sha256:"):
            raise UnsupportedError("only SHA-256 digests are supported", subject=text[:300])
        raise _malformed(text, "the digest is not sha256: and 64 hexadecimal digits")
    if re.fullmatch(r"[0-9a-f]{64}", text):
        raise _malformed(text, "64 hexadecimal digits are an id, not a name")
    registry, path, tag = _split(rest)
    if not _PATH.fullmatch(path):
        capital = path.lower() != path and _PATH.fullmatch(path.lower())
        raise _malformed(text, "the name must be in lower case" if capital else "")
    if not _DOMAIN.fullmatch(registry):
        raise _malformed(text, "the registry is not a host name")
    if tag is not None and not _TAG.fullmatch(tag):
        raise _malformed(text, "the tag is not [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
    if len(path) + len(registry) + 1 > MAX_NAME_LENGTH:
        raise _malformed(text, f"the name is longer than {MAX_NAME_LENGTH}")
    return Named(registry, path, tag if tag is not None else "" if digest else DEFAULT_TAG, digest)


def parse_source(text: str) -> Source:
    """What to pull. Raises InvalidError, UnsupportedError."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == Transport.DOCKER and rest.startswith("//"):
        return Source(Transport.DOCKER, parse_named(rest[2:]))
    if colon and rest.startswith("/") and scheme not in set(Transport):
        raise InvalidError(
            f"{scheme}: is not where an image can come from", subject=text[:300], hint=_SUPPORTED
        )
    if not colon or scheme == Transport.DOCKER or scheme not in set(Transport) or rest.isdecimal():
        return Source(Transport.DOCKER, parse_named(text))
    transport = Transport(scheme)
    if transport is Transport.DOCKER_DAEMON:
        return Source(transport, parse_named(rest))
    if transport is Transport.OCI and not rest.startswith(".") and "/" not in rest:
        return Source(Transport.DOCKER, parse_named(text))  # an image that is called "oci"
    path, _, inner = rest.partition(":")
    if not path.startswith("/") or "\x00" in rest or len(rest) > MAX_REFERENCE_LENGTH:
        raise InvalidError(f"{transport}: needs an absolute path", subject=text[:300], hint=_SUPPORTED)
    return Source(transport, _named_inside(transport, inner), path, inner)


def canonical(named: Named) -> Named:
    """As it is kept: a digest makes the tag beside it meaningless."""
    return Named(named.registry, named.path, "", named.digest) if named.digest else named


def parse_repository(text: str) -> Named:
    """A name without a tag or a digest. Raises InvalidError."""
    named = parse_named(text)
    if named.digest or ":" in text.rpartition("/")[2]:
        raise InvalidError("all tags are meant, so none can be named", subject=text[:300])
    return named


def require_free(named: Named) -> Named:
    """Raises InvalidError for a name that hyperd gives an image itself."""
    if named.repository == BUILDER_REPOSITORY:
        raise InvalidError("is a name that hyperd keeps for the image it builds in", subject=str(named))
    return named


def parse_target(text: str) -> Named:
    """A name with a tag, as images are given them. Raises InvalidError."""
    named = parse_named(text)
    if named.digest:
        raise InvalidError("a digest cannot be given as a name", subject=text[:300], hint=_HINT)
    return require_free(named)


def id_prefix(text: str) -> str:
    """The hexadecimal digits when the text may be an image id or its beginning, else ""."""
    digits = text.removeprefix("sha256:")
    return digits if _HEX.fullmatch(digits) else ""


def is_full_id(text: str) -> bool:
    return bool(re.fullmatch(r"(?:sha256:)?[0-9a-f]{64}", text))


def is_tag(text: object) -> bool:
    return isinstance(text, str) and bool(_TAG.fullmatch(text))


def is_digest(text: str) -> bool:
    return bool(_DIGEST.fullmatch(text))


def parse_digest(text: object, what: str) -> Digest:
    """Raises InvalidError; the only way that foreign text becomes a file name."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise InvalidError(f"the {what} is not a SHA-256 digest", evidence=repr(text)[:200])
    return Digest(text)


def split_registry(text: str) -> tuple[str, str]:
    """HOST/REST, by Docker's rule of what a registry's name looks like; else all of it is of Docker's."""
    head, slash, tail = text.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head.lower() != head):
        return (DEFAULT_REGISTRY if head == "index.docker.io" else head), tail
    return DEFAULT_REGISTRY, text


def _split(text: str) -> tuple[str, str, str | None]:
    registry, remainder = split_registry(text)
    path, colon, tag = remainder.partition(":")
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"{DEFAULT_NAMESPACE}/{path}"
    return registry, path, tag if colon else None


def _named_inside(transport: Transport, inner: str) -> Named | None:
    """An image's name inside a layout is a name of ours only when it is written as one: not `latest`, not `@0`."""
    if not inner or inner.startswith("@"):
        return None
    if transport is not Transport.DOCKER_ARCHIVE and not ("/" in inner or ":" in inner):
        return None
    try:
        return parse_named(inner)
    except InvalidError:
        if transport is Transport.DOCKER_ARCHIVE:
            raise
        return None


def is_loopback_host(registry: str) -> bool:
    """With or without a port."""
    host = (
        registry.rpartition("]")[0].removeprefix("[")
        if registry.startswith("[")
        else registry.partition(":")[0]
    )
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _malformed(text: str, why: str) -> InvalidError:
    return InvalidError("malformed image reference", subject=repr(text[:300]), evidence=why, hint=_HINT)
