# SPDX-License-Identifier: Apache-2.0
"""A caller's credentials on their way to skopeo: a private file for one call, gone afterwards.

skopeo reads either its own files or the one it is given, so what the daemon's files say of other registries is copied
into it (containers-auth.json(5)). Never on a command line, in an environment or in a log.
"""

import base64
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from hyperd.errors import InvalidError
from hyperd.host import files
from hyperd.host.workers import Workers
from hyperd.image.reference import DEFAULT_REGISTRY
from hyperd.model.image import Credentials

MAX_FILE_BYTES = 1 << 20
MAX_SECRET_LENGTH = 64 << 10
_TOKEN_USER = "<token>"  # noqa: S105  # what Docker writes in a name's place
_ALIASES = frozenset({"index.docker.io", "registry-1.docker.io"})


class Logins:
    """``authfile``: the daemon's own, when not in skopeo's own places."""

    def __init__(self, temporary: Path, workers: Workers, authfile: Path | None) -> None:
        self._temporary = temporary
        self._workers = workers
        self._authfile = authfile

    @contextlib.asynccontextmanager
    async def lent(self, credentials: Credentials | None, registry: str) -> AsyncIterator[Path | None]:
        """The file for skopeo's ``--authfile``, None when its own will do. Raises InvalidError."""
        if credentials is None or credentials == Credentials():
            yield self._authfile
            return
        require_sensible(credentials)
        path = self._temporary / f"auth-{secrets.token_hex(8)}.json"
        try:
            # Waited for even by a caller that is cancelled, so that the file is not written after its end.
            await self._workers.call_while_wanted(lambda _: self._write(path, credentials, registry))
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _write(self, path: Path, credentials: Credentials, registry: str) -> None:
        places = [self._authfile] if self._authfile is not None else _places()
        body = render_authfile(credentials, registry, [_read(place) for place in places])
        with files.file_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
                file.write(body)


def require_sensible(credentials: Credentials) -> None:
    """Raises InvalidError."""
    if not credentials.identity_token and not credentials.username:
        raise InvalidError("the credentials have no user name")
    if ":" in credentials.username:
        raise InvalidError("a registry's user name cannot have a colon")
    texts = (credentials.username, credentials.password, credentials.identity_token)
    if any(len(text) > MAX_SECRET_LENGTH or "\x00" in text for text in texts):
        raise InvalidError("the credentials are not sensible texts")


def render_authfile(credentials: Credentials, registry: str, others: list[dict[str, Any]]) -> bytes:
    """``others``: the daemon's own files, the most important first; what they say of ``registry`` is left out."""
    user = credentials.username or _TOKEN_USER
    entry = {"auth": base64.b64encode(f"{user}:{credentials.password}".encode()).decode()}
    if credentials.identity_token:
        entry["identitytoken"] = credentials.identity_token
    body: dict[str, dict[str, Any]] = {"auths": {}, "credHelpers": {}}
    for kind, merged in body.items():
        for other in reversed(others):
            found = other.get(kind)
            if isinstance(found, Mapping):
                merged.update({key: value for key, value in found.items() if _host(key) != registry})
    body["auths"][registry] = entry
    return json.dumps(body).encode()


def _host(key: str) -> str:
    """`https://index.docker.io/v1/`, `example.org/team`: of which registry an entry speaks."""
    host = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return DEFAULT_REGISTRY if host in _ALIASES else host


def _places() -> list[Path]:
    """Where skopeo looks, in its order."""
    runtime, home = os.environ.get("XDG_RUNTIME_DIR"), Path(os.environ.get("HOME") or "/root")
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return [
        Path(runtime) / "containers/auth.json"
        if runtime
        else Path(f"/run/containers/{os.getuid()}/auth.json"),
        configuration / "containers/auth.json",
        home / ".docker/config.json",
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            body = json.loads(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}  # skopeo would complain; to this call it does not matter
    return body if isinstance(body, dict) else {}
