# SPDX-License-Identifier: Apache-2.0
"""The file of credentials that `hyper login` writes: containers-auth.json(5), mode 0600, changed as a whole."""

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperctl.credentials import DOCKER_HUB, HUB_NAMES, normalized_host, read_auth_file
from hyperctl.errors import InvalidError

_KEY = re.compile(r"[A-Za-z0-9.\-_\[\]:]+(/[a-z0-9._\-/]+)?", re.ASCII)


def parse_registry(text: str) -> str:
    """HOST[:PORT][/PATH]; `https://index.docker.io/v1/` is docker.io. Raises InvalidError."""
    bare = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    if bare.partition("/")[0] in HUB_NAMES and (bare != text or "/" not in bare):
        bare = DOCKER_HUB
    if not _KEY.fullmatch(bare) or bare.startswith("-"):
        raise InvalidError("is not a registry: HOST[:PORT][/PATH]", subject=repr(text))
    return bare


def is_loopback(key: str) -> bool:
    """Those need no TLS, as with pulls."""
    host = key.partition("/")[0]
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"


@contextlib.contextmanager
def changing(place: Path) -> Iterator[Path]:
    """A copy to change, which takes the file's place at the end of the block. One at a time."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (place.parent / f".{place.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = read_auth_file(place) or {}
            descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")  # mode 0600
            draft = Path(name)
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(content, file)
                yield draft
                draft.chmod(0o600)
                draft.replace(place)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InvalidError(f"cannot be written: {error.strerror}", subject=str(place)) from error


def forget(place: Path, key: str) -> bool:
    """Whether it was there."""
    if not knows(place, key):
        return False
    with changing(place) as draft:
        content = read_auth_file(draft) or {}
        content["auths"] = {name: entry for name, entry in _auths(content).items() if not _is(name, key)}
        draft.write_text(json.dumps(content, indent="\t"))
    return True


def knows(place: Path, key: str) -> bool:
    return any(_is(name, key) for name in _auths(read_auth_file(place) or {}))


def _is(name: str, key: str) -> bool:
    return name == key or normalized_host(name) == key


def _auths(content: dict[str, Any]) -> dict[str, Any]:
    auths = content.get("auths")
    return auths if isinstance(auths, dict) else {}
