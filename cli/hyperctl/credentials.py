# SPDX-License-Identifier: Apache-2.0
"""Who the user is to a registry: what `hyper login`, podman, docker and their helpers keep, read on this side.

The daemon gets what one call needs, over its UNIX socket. Formats: containers-auth.json(5), docker's config.json.
No message and no argument of a program ever has a secret in it.
"""

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyper.v1 import image_pb2 as pb
from hyperctl.errors import CliError, InvalidError
from hyperctl.names import is_registry_reference, split_reference

DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # what docker and its helpers call it
HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
TOKEN_USER = "<token>"  # noqa: S105 - a helper's word for: the secret is an identity token
MAX_FILE_BYTES = 1 << 20
HELPER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class AuthFile:
    path: Path
    has_store: bool = False  # docker's: `credsStore` is the helper for all registries


def own_file(environ: Mapping[str, str]) -> Path:
    """Where `hyper login` keeps what it was given."""
    if named := environ.get("HYPER_AUTH_FILE"):
        return Path(named)
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hyper/auth.json"


def auth_files(environ: Mapping[str, str]) -> list[AuthFile]:
    """In the order in which they are asked: hyper's, podman's, docker's."""
    config = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = [AuthFile(own_file(environ))]
    if named := environ.get("REGISTRY_AUTH_FILE"):
        files.append(AuthFile(Path(named)))
    else:
        if runtime := environ.get("XDG_RUNTIME_DIR"):
            files.append(AuthFile(Path(runtime) / "containers/auth.json"))
        files.append(AuthFile(config / "containers/auth.json"))
    docker = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    return [*files, AuthFile(docker / "config.json", has_store=True)]


def repository_of(reference: str) -> str:
    """`alpine:3` -> docker.io/library/alpine, as hyperd understands it. "" for an archive."""
    reference = reference.removeprefix("docker://")
    if not is_registry_reference(reference):
        return ""
    name = split_reference(reference)[0]
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost" or host != host.lower()):
        host, rest = DOCKER_HUB, name
    if host in HUB_NAMES:
        return f"{DOCKER_HUB}/{rest if '/' in rest else f'library/{rest}'}"
    return f"{host}/{rest}"


def find_credentials(
    reference: str, environ: Mapping[str, str] | None = None
) -> pb.RegistryCredentials | None:
    """What the first file that knows the reference's registry, or a namespace of it, has. None: nobody does.

    Raises CliError for a file or a helper that is there and does not work.
    """
    environ = os.environ if environ is None else environ
    repository = repository_of(reference)
    if not repository:
        return None
    for file in auth_files(environ):
        content = read_auth_file(file.path)
        if content is not None:
            found = _find_in(file, content, repository)
            if found is not None:
                return found
    return None


def read_auth_file(path: Path) -> dict[str, Any] | None:
    """None when there is none, or it is not ours to read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        raise CliError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    try:
        content = json.loads(data) if data.strip() and len(data) <= MAX_FILE_BYTES else {}
    except (ValueError, RecursionError):  # its text may hold a secret: not even a part of it is shown
        content = None
    if not isinstance(content, dict):
        raise InvalidError("is not a file of credentials", subject=str(path), hint="mend it, or log in anew")
    return content


def _find_in(file: AuthFile, content: dict[str, Any], repository: str) -> pb.RegistryCredentials | None:
    host = repository.partition("/")[0]
    helpers = _table(content, "credHelpers")
    for key in _keys(repository):
        if isinstance(helper := helpers.get(key), str):
            return _ask_helper(helper, key)
    store = content.get("credsStore")
    if file.has_store and isinstance(store, str) and store:
        found = _ask_helper(store, DOCKER_HUB_KEY if host == DOCKER_HUB else host)
        if found is not None:
            return found
    entries = _table(content, "auths")
    for key in _keys(repository):
        if (found := _decode(entries.get(key))) is not None:
            return found
    for key, entry in entries.items():  # docker's keys are addresses at times
        if normalized_host(key) == host and (found := _decode(entry)) is not None:
            return found
    return None


def _table(content: dict[str, Any], name: str) -> dict[str, Any]:
    table = content.get(name)
    return table if isinstance(table, dict) else {}


def _keys(repository: str) -> Iterator[str]:
    """host/a/b, host/a, host: the most precise first."""
    while repository:
        yield repository
        repository = repository.rpartition("/")[0]


def normalized_host(key: str) -> str:
    """https://index.docker.io/v1/ -> docker.io; "" for a key with a namespace."""
    bare = key.removeprefix("https://").removeprefix("http://")
    if bare != key:
        bare = bare.partition("/")[0]
    return DOCKER_HUB if bare in HUB_NAMES else bare


def _decode(entry: object) -> pb.RegistryCredentials | None:
    if not isinstance(entry, dict):
        return None
    token, auth = entry.get("identitytoken"), entry.get("auth")
    if isinstance(token, str) and token:
        return pb.RegistryCredentials(identity_token=token)
    if not isinstance(auth, str) or not auth:
        return None
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    username, colon, password = text.partition(":")
    if not colon:
        return None
    return pb.RegistryCredentials(username=username, password=password.strip("\0"))


def _ask_helper(name: str, server: str) -> pb.RegistryCredentials | None:
    """`docker-credential-NAME get`. None when it knows nothing of the registry."""
    from hyperctl.process import ask_credential_helper

    answer = ask_credential_helper(name, server, timeout_s=HELPER_TIMEOUT_S)
    if answer is None:
        return None
    try:
        found = json.loads(answer)
        username, secret = found["Username"], found["Secret"]
        if username == TOKEN_USER:
            return pb.RegistryCredentials(identity_token=secret)
        return pb.RegistryCredentials(username=username, password=secret)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CliError(
            "gave no credentials that can be understood", subject=f"docker-credential-{name}"
        ) from None
