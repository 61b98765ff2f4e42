# SPDX-License-Identifier: Apache-2.0
"""Which part of the host's signature policy an image falls under (containers-policy.json(5)).

Whether it is admitted is skopeo's to say. Here is read what it asks for, so that it can be shown, and whether it asks
for anything at all. The bytes that were read are those that skopeo is given.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hyperd.errors import DeniedError
from hyperd.image.reference import Source, Transport, canonical
from hyperd.model.image import Requirement

MAX_POLICY_BYTES = 4 << 20
MAX_KEY_BYTES = 1 << 20
DEFAULT_SCOPE = "default"
_ACCEPT_ALL = [{"type": "insecureAcceptAnything"}]
_KEY_FILES = ("keyPath", "fulcio", "rekorPublicKeyPath")
_KEY_DATA = ("keyData", "rekorPublicKeyData")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is asked of one image. ``scope``: the key in the policy that decided, TRANSPORT:KEY."""

    scope: str
    requirements: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    raw: bytes
    default: list[Any]
    transports: Mapping[str, Mapping[str, list[Any]]]

    @property
    def asks_nothing(self) -> bool:
        """Of no image from anywhere."""
        scopes = (asked for scopes in self.transports.values() for asked in scopes.values())
        return self.default == _ACCEPT_ALL and all(asked == _ACCEPT_ALL for asked in scopes)

    def verdict(self, source: Source) -> Verdict:
        """Reads the keys' files, so blocks."""
        transport = str(source.transport)
        scopes = self.transports.get(transport, {})
        for scope in (*_scopes(source), ""):
            if scope in scopes:
                return Verdict(f"{transport}:{scope}", tuple(map(_requirement, scopes[scope])))
        return Verdict(DEFAULT_SCOPE, tuple(map(_requirement, self.default)))


def read_policy(path: Path) -> Policy:
    """Blocks. Raises DeniedError: without a policy that can be read nothing is admitted."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_POLICY_BYTES)
        return parse_policy(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise DeniedError(
            "the host's signature policy cannot be read",
            subject=str(path),
            evidence=str(error)[:300],
            hint="containers-policy.json(5) says how it is written",
        ) from error


def parse_policy(raw: bytes) -> Policy:
    """Raises ValueError. As much as is needed here: skopeo holds the same bytes to every rule."""
    body = json.loads(raw, object_pairs_hook=_once)
    if not isinstance(body, dict) or not _is_asked(body.get("default")):
        raise ValueError("there is no default")
    transports = body.get("transports", {})
    if not _is_table(transports) or not all(map(_is_table, transports.values())):
        raise ValueError("transports is not a table of tables")
    if not all(_is_asked(asked) for scopes in transports.values() for asked in scopes.values()):
        raise ValueError("a scope is not a list of requirements")
    return Policy(raw, body["default"], transports)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two members of one name skopeo refuses the second; which of them would count is not ours to guess."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _is_asked(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _scopes(source: Source) -> Iterator[str]:
    """The most particular first."""
    if source.transport in (Transport.DOCKER, Transport.DOCKER_DAEMON) and source.named is not None:
        named = canonical(source.named)
        yield str(named)
        path = PurePosixPath(named.repository)
        yield from (str(each) for each in (path, *path.parents) if str(each) != ".")
        host = named.registry.partition(":")[0]
        parts = host.split(".")
        yield from ("*." + ".".join(parts[count:]) for count in range(1, len(parts)))
    elif source.transport in (Transport.OCI, Transport.OCI_ARCHIVE):
        path = PurePosixPath(source.path)
        yield f"{path}:{source.inner}"
        yield from (str(each) for each in (path, *path.parents) if str(each) != "/")


def _requirement(asked: Mapping[str, Any]) -> Requirement:
    files = [asked[key] for key in _KEY_FILES if isinstance(asked.get(key), str)]
    listed = asked.get("keyPaths")
    files += [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
    keys = [f"{each} {_fingerprint(Path(each))}".rstrip() for each in files]
    keys += [
        f"inline sha256:{hashlib.sha256(asked[key].encode()).hexdigest()}"
        for key in _KEY_DATA
        if isinstance(asked.get(key), str)
    ]
    identity = asked.get("signedIdentity")
    kind = identity.get("type") if isinstance(identity, dict) else ""
    return Requirement(str(asked.get("type"))[:100], tuple(keys), str(kind or "")[:100])


def _fingerprint(path: Path) -> str:
    """Of the key's file as it is now. One that cannot be read is skopeo's to complain of."""
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.sha256(file.read(MAX_KEY_BYTES)).hexdigest()
    except (OSError, ValueError):  # a zero byte is in no path
        return ""
