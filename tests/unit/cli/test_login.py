# SPDX-License-Identifier: Apache-2.0
"""`hyper login`: the registry is asked by skopeo, the password goes through a pipe, the file is the user's alone."""

import io
import json
import os
import pty
import stat
import subprocess
import sys
import types

import pytest

SECRET = "sesame-417"
# What the command line knows of skopeo: it writes the file when the registry accepts.
SKOPEO = """#!/bin/sh
printf '%s\\n' "$@" > "{home}/argv"
password=$(cat)
[ "$password" = "{secret}" ] || {{ echo "unauthorized: $password is wrong" >&2; exit 1; }}
printf '{{"auths": {{"%s": {{"auth": "eHg="}}}}}}' "$(printf '%s' "$*" | sed 's/.* //')" > "$3"
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    program = tmp_path / "bin/skopeo"
    program.parent.mkdir()
    program.write_text(SKOPEO.format(home=tmp_path, secret=SECRET))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "XDG_CONFIG_HOME",
        "XDG_RUNTIME_DIR",
        "DOCKER_CONFIG",
        "REGISTRY_AUTH_FILE",
        "HYPER_AUTH_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def typed(monkeypatch):
    return lambda data: monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def test_a_login_is_kept_in_the_users_own_file(home, hyper, typed):
    typed(f"{SECRET}\n".encode())
    result = hyper("login", "-u", "me", "--password-stdin", "example.org")
    place = home / ".config/hyper/auth.json"
    assert (result.status, result.out) == (0, "Login Succeeded\n")
    assert result.err == f"WARNING! Your credentials are stored unencrypted in '{place}'.\n"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    argv = (home / "argv").read_text().split("\n")
    assert (argv[0], argv[3:]) == ("login", ["--username", "me", "--password-stdin", "--", "example.org", ""])
    result = hyper("logout", "example.org")
    assert result.out == "Removing login credentials for example.org\n"
    assert json.loads(place.read_text()) == {"auths": {}}
    assert hyper("logout", "example.org").out == "Not logged in to example.org\n"


def test_a_login_that_is_refused_leaves_nothing_and_shows_no_password(home, hyper, typed):
    typed(b"wrong-password-77")
    result = hyper("login", "-u", "me", "--password-stdin")
    assert result.status == 8
    assert result.err == "hyper: docker.io: does not accept this login\n  unauthorized: *** is wrong\n"
    assert not (home / ".config/hyper/auth.json").exists()


def test_a_registry_on_loopback_needs_no_tls(home, hyper, typed):
    typed(SECRET.encode())
    assert hyper("login", "-u", "me", "--password-stdin", "localhost:5000").status == 0
    assert "--tls-verify=false" in (home / "argv").read_text()


def test_a_password_on_the_command_line_is_warned_of(home, hyper):
    result = hyper("login", "-u", "me", "-p", SECRET, "example.org")
    assert result.status == 0
    assert result.err.startswith("WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n")
    assert SECRET not in (home / "argv").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("-u", "me", "-p", "x", "--password-stdin"),
            "--password and --password-stdin are mutually exclusive",
        ),
        (("--password-stdin",), "must provide --username with --password-stdin"),
        ((), "cannot perform an interactive login from a non TTY device"),
        (("-u", "me", "-p", "x", "--", "-evil"), "is not a registry"),
    ],
)
def test_what_is_no_login(home, hyper, args, message, monkeypatch):
    monkeypatch.setattr("hyperctl.terminal.is_terminal", lambda _: False)
    result = hyper("login", *args)
    assert (result.status, message in result.err) == (2, True)


def test_a_prompt_shows_no_password(home, spawn, environ):
    leader, follower = pty.openpty()
    settings = {**environ, "HOME": str(home), "PATH": os.environ["PATH"]}
    child = spawn(
        "login",
        "example.org",
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=settings,
        start_new_session=True,
    )
    os.close(follower)
    shown = b""
    for prompt, answer in ((b"Username: ", b"me\n"), (b"Password: ", f"{SECRET}\n".encode())):
        while prompt not in shown:
            shown += os.read(leader, 1000)
        os.write(leader, answer)
    assert child.wait(60) == 0
    while True:
        try:
            data = os.read(leader, 1000)
        except OSError:  # EIO: the other side has gone
            break
        if not data:
            break
        shown += data
    os.close(leader)
    assert b"Login Succeeded" in shown
    assert SECRET.encode() not in shown


def test_no_skopeo_is_said(home, hyper, typed, monkeypatch):
    (home / "bin/skopeo").unlink()
    typed(SECRET.encode())
    monkeypatch.setenv("PATH", str(home / "bin"))
    result = hyper("login", "-u", "me", "--password-stdin")
    assert (result.status, "skopeo: cannot be executed" in result.err) == (7, True)


def test_logout_tells_of_others_files(home, hyper):
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text('{"auths": {"example.org": {"auth": "eA=="}}}')
    result = hyper("logout", "example.org")
    assert (result.out, ".docker/config.json still has credentials" in result.err) == (
        "Not logged in to example.org\n",
        True,
    )


@pytest.mark.parametrize("args", [("ps",), ("images",), ("run", "alpine"), ("stop", "x")])
def test_commands_import_no_more_than_they_need(environ, args):
    """Start-up is a feature: what only some need is imported by those."""
    dear = {
        "tarfile",
        "tempfile",
        "getpass",
        "pydantic",
        "hyperctl.credentials",
        "hyperctl.unpack",
        "hyperctl.image_filters",
    }
    code = f"""
import sys
from hyperctl import main
main.run(["--host", "unix:///nowhere", *{args!r}])
print(sorted({dear!r} & set(sys.modules)))
"""
    child = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, check=True, timeout=60
    )
    expected = "['hyperctl.image_filters']" if args == ("images",) else "[]"
    assert child.stdout.decode().strip() == expected
