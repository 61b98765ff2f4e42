# SPDX-License-Identifier: Apache-2.0
"""`hyper login` and `logout`."""

import os
import sys
from typing import Annotated

import typer

from hyperctl import credentials, login, terminal, tree
from hyperctl.credentials import DOCKER_HUB, own_file
from hyperctl.errors import InvalidError

app = tree.group()

Registry = Annotated[
    str,
    typer.Argument(metavar="[REGISTRY]", help="HOST[:PORT], with /PATH for a part of it [docker.io]"),
]
MAX_PASSWORD_BYTES = 64 * 1024


@tree.command(app, "login")
def login_(
    registry: Registry = DOCKER_HUB,
    *,
    username: Annotated[str, typer.Option("--username", "-u", metavar="NAME", show_default=False)] = "",
    password: Annotated[
        str,
        typer.Option("--password", "-p", metavar="PASSWORD", help="Seen by everybody", show_default=False),
    ] = "",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Take the password from standard input")
    ] = False,
    tls_insecure: Annotated[
        bool, typer.Option("--tls-insecure", help="Plain HTTP, or a certificate that nobody vouches for")
    ] = False,
) -> int:
    """Log in to a registry. The credentials are kept on this side, in a file of the user's."""
    from hyperctl.process import verify_login

    key = login.parse_registry(registry)
    if password:
        _say("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
        if password_stdin:
            raise InvalidError("--password and --password-stdin are mutually exclusive", subject="login")
    if password_stdin and not username:
        raise InvalidError("must provide --username with --password-stdin", subject="login")
    if password_stdin:
        password = _read_password()
    elif not (username and password):
        username, password = _ask(username, password)
    if not username or not password:
        raise InvalidError("a username and a password are needed", subject="login")
    place = own_file(os.environ)
    with login.changing(place) as draft:
        verify_login(
            key,
            username,
            password,
            authfile=draft,
            tls_insecure=tls_insecure or login.is_loopback(key),
        )
    _say(f"WARNING! Your credentials are stored unencrypted in '{place}'.")
    print("Login Succeeded")
    return 0


def _read_password() -> str:
    data = sys.stdin.buffer.read(MAX_PASSWORD_BYTES + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidError("the password is not UTF-8 text", subject="login") from None
    if len(data) > MAX_PASSWORD_BYTES:
        raise InvalidError(f"the password is longer than {MAX_PASSWORD_BYTES} bytes", subject="login")
    return text.removesuffix("\n").removesuffix("\r")


def _ask(username: str, password: str) -> tuple[str, str]:
    if not terminal.is_terminal(0):
        raise InvalidError(
            "cannot perform an interactive login from a non TTY device",
            subject="login",
            hint="give -u NAME and --password-stdin",
        )
    import getpass

    try:
        username = username or input("Username: ").strip()
        return username, password or getpass.getpass("Password: ")
    except EOFError:
        raise InvalidError("a username and a password are needed", subject="login") from None


@tree.command(app, "logout")
def logout(registry: Registry = DOCKER_HUB) -> int:
    """Forget the credentials for a registry that `hyper login` keeps."""
    key = login.parse_registry(registry)
    place = own_file(os.environ)
    if login.forget(place, key):
        print(f"Removing login credentials for {key}")
    else:
        print(f"Not logged in to {key}")
    for file in credentials.auth_files(os.environ)[1:]:
        if login.knows(file.path, key):
            _say(f"{file.path} still has credentials for {key}, which hyper uses")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
