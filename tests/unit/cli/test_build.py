# SPDX-License-Identifier: Apache-2.0
"""`hyper build`: what is sent, what is shown, and with which status it ends."""

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile

import grpc
import pytest

from hyperctl.build_call import EngineOutput
from hyperctl.build_context import pack_context
from hyperctl.build_secrets import read_secrets
from hyperctl.dockerignore import Ignored
from hyperctl.errors import CliError
from tests.fakes.daemon_state import digest
from tests.harness import wait_until

SECRET = "pass-word-5309"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HYPER_AUTH_FILE", str(tmp_path / "auth.json"))
    place = tmp_path / "project"
    (place / "sub").mkdir(parents=True)
    (place / "Dockerfile").write_text("FROM alpine\n")
    (place / "sub/a").write_text("a")
    (place / "b").write_text("b")
    return place


def members(context: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(context)) as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            found[member.name] = file.read() if file is not None else b""
        return found


def test_a_directory_is_sent_with_its_dockerfile_beside(daemon, hyper, project):
    result = hyper(
        "build", "-t", "mine:1", "--build-arg", "A=1", "--label", "x=y", "--target", "one", str(project)
    )
    assert (result.status, result.out) == (0, "")
    assert result.err == (
        f"STEP 1/1: FROM alpine\nSuccessfully built {digest('built')}\nSuccessfully tagged mine:1\n"
    )
    options = daemon.engine.options
    assert (options.dockerfile, options.target) == (b"FROM alpine\n", "one")
    assert (list(options.build_args), list(options.labels)) == (["A=1"], ["x=y"])
    assert not options.apply_ignore_file
    assert members(daemon.engine.context) == {
        "Dockerfile": b"FROM alpine\n",
        "b": b"b",
        "sub": b"",
        "sub/a": b"a",
    }


def test_what_is_ignored_is_not_sent(daemon, hyper, project):
    (project / ".dockerignore").write_text("sub\n!sub/kept\nDockerfile\n.dockerignore\n")
    (project / "sub/kept").write_text("kept")
    assert hyper("build", str(project)).status == 0
    assert members(daemon.engine.context) == {"b": b"b", "sub": b"", "sub/kept": b"kept"}
    (project / "Dockerfile.dockerignore").write_text("b\n")
    assert hyper("build", str(project)).status == 0
    assert "b" not in members(daemon.engine.context)
    assert "sub/a" in members(daemon.engine.context)


def test_quiet_shows_the_id_alone_and_a_failure_whole(daemon, hyper, project, tmp_path):
    file = tmp_path / "id"
    result = hyper("build", "-q", "--iidfile", str(file), str(project))
    assert (result.out, result.err) == (f"{digest('built')}\n", "")
    assert file.read_text() == digest("built")
    daemon.engine.failure = 7
    result = hyper("build", "--progress", "quiet", "--iidfile", str(file), str(project))
    assert (result.status, result.out) == (1, "")
    assert result.err == "STEP 1/1: FROM alpine\nhyper: status 7: the build failed\n"
    assert not file.exists()


def test_the_daemons_refusal_has_its_own_status(daemon, hyper, project):
    daemon.fail_next("BuildImage", grpc.StatusCode.NOT_FOUND, "no such tag", subject="far/base")
    result = hyper("build", str(project))
    assert (result.status, result.err) == (3, "hyper: far/base: no such tag\n")


def test_credentials_are_given_when_they_are_asked_for(daemon, hyper, project, tmp_path):
    entry = {"auth": base64.b64encode(f"me:{SECRET}".encode()).decode()}
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {"far.example": entry}}))
    daemon.engine.wanted = ("far.example/base:1", "other.example/base")
    result = hyper("build", str(project))
    assert result.status == 0
    assert daemon.engine.answers["far.example/base:1"].credentials.password == SECRET
    assert not daemon.engine.answers["other.example/base"].HasField("credentials")
    assert SECRET not in result.err + str(daemon.engine.options)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_on_standard_input_is_the_context(daemon, spawn, project, compress):
    content = b"".join(pack_context(project, Ignored("")))
    child = spawn("build", "-f", "sub/Other", "-", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = child.communicate(compress(content), timeout=60)
    assert child.returncode == 0, said
    assert members(daemon.engine.context) == members(content)
    options = daemon.engine.options
    assert (options.dockerfile, options.dockerfile_path, options.apply_ignore_file) == (
        b"",
        "sub/Other",
        True,
    )


def test_a_dockerfile_on_standard_input_has_no_context(daemon, spawn):
    child = spawn("build", "-", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = child.communicate(b"FROM alpine\nRUN true\n", timeout=60)
    assert child.returncode == 0, said
    assert daemon.engine.options.dockerfile == b"FROM alpine\nRUN true\n"
    assert members(daemon.engine.context) == {}


def test_a_dockerfile_on_standard_input_for_a_directory(daemon, spawn, project):
    child = spawn("build", "-f", "-", str(project), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = child.communicate(b"FROM busybox\n", timeout=60)
    assert child.returncode == 0, said
    assert daemon.engine.options.dockerfile == b"FROM busybox\n"
    assert "b" in members(daemon.engine.context)


@pytest.mark.parametrize(
    ("place", "url", "ref", "directory"),
    [
        ("https://example.org/a.git", "https://example.org/a.git", "", ""),
        ("https://example.org/a.git#v1:sub/dir", "https://example.org/a.git", "v1", "sub/dir"),
        ("git@example.org:a/b#:sub", "git@example.org:a/b", "", "sub"),
        ("git://example.org/a", "git://example.org/a", "", ""),
        ("github.com/a/b", "https://github.com/a/b", "", ""),
        ("me@example.org:a/b", "me@example.org:a/b", "", ""),
        ("git+https://example.org/a#v1", "https://example.org/a", "v1", ""),
    ],
)
def test_a_repository_is_left_to_the_builder(daemon, hyper, place, url, ref, directory):
    assert hyper("build", place).status == 0
    options = daemon.engine.options
    assert (options.git.url, options.git.ref, options.git.directory) == (url, ref, directory)
    assert options.apply_ignore_file


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("no-such-directory",), 3, "path not found"),
        (("https://example.org/a.tar",), 2, "hyper fetches no URLs"),
        (("-f", "-", "-"), 2, "cannot both come from standard input"),
        (("-f", "no-such-file", "."), 3, "no such file"),
        (("empty",), 3, "hyper: empty: failed to read dockerfile: there is no Dockerfile in it"),
        (("--progress", "tty", "."), 2, "--progress tty"),
        (("--secret", "id=a,src=/no/such", "."), 2, "--secret /no/such"),
        (("--squash", "."), 2, "no such option"),
        (("--add-host", "x", "."), 2, "--add-host"),
    ],
)
def test_what_cannot_be_built_is_said(hyper, daemon, project, monkeypatch, arguments, status, said):
    monkeypatch.chdir(project)
    (project / "empty").mkdir()
    result = hyper("build", *arguments)
    assert result.status == status
    assert said in result.err
    assert daemon.engine.options is None


def test_a_password_in_an_address_is_not_shown(hyper, daemon):
    result = hyper("build", "https://me:sesame@example.org/a.tar")
    assert (result.status, result.out) == (2, "")
    assert result.err == (
        "hyper: https://***@example.org/a.tar: hyper fetches no URLs\n"
        "hint: curl -L https://***@example.org/a.tar | hyper build -\n"
    )


def test_a_context_that_breaks_off_is_told_rather_than_what_the_daemon_says(spawn, daemon, project):
    content = gzip.compress(os.urandom(1 << 20))
    child = spawn("build", "-", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = child.communicate(content[:-1000], timeout=60)
    assert child.returncode == 1
    assert said.decode().startswith("hyper: the context: cannot be unpacked: Compressed file ended")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("id=a,src=FILE", b"from the file"),
        ("type=file,id=a,source=FILE", b"from the file"),
        ("id=a,env=NAME", b"from the environment"),
        ("id=NAME", b"from the environment"),
        ("id=a,type=env,src=NAME", b"from the environment"),
        ("type=env,id=NAME", b"from the environment"),
        ("id=FILE", b"from the file"),
    ],
)
def test_where_a_secret_comes_from(tmp_path, monkeypatch, text, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_bytes(b"from the file")
    (secret,) = read_secrets([text], {"NAME": "from the environment"})
    assert secret.content == content


@pytest.mark.parametrize(
    "text", ["", "src=a", "id=a,src=b,env=c", "id=a,mode=1", "id=a,id=b", "id=a,type=x", "id=a,env=NO"]
)
def test_a_secret_that_cannot_be_meant_is_refused(text):
    with pytest.raises(CliError) as caught:
        read_secrets([text], {})
    assert caught.value.exit_status == 2


def test_a_pager_that_nobody_turns_does_not_hold_the_build_up(daemon, spawn, project):
    line = b"x" * 1023 + b"\n"
    daemon.engine.output, daemon.engine.repeats = line * 512, 64
    child = spawn("build", str(project), stderr=subprocess.PIPE)
    wait_until(lambda: daemon.engine.taken == 64, "all is taken, and nothing was read")
    _, said = child.communicate(timeout=60)
    assert child.returncode == 0
    assert said.count(line) == 512 * 64
    assert said.endswith(f"Successfully built {digest('built')}\n".encode())


def test_a_reader_who_goes_ends_the_build(daemon, spawn, project):
    daemon.engine.output, daemon.engine.repeats = b"x" * (1 << 19), 1 << 20
    child = spawn("build", str(project), stderr=subprocess.PIPE)
    assert child.stderr.read(1) == b"x"
    child.stderr.close()
    assert child.wait(60) == 141


def test_what_the_engine_says_reaches_a_terminal_without_control_characters():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    shown = EngineOutput(out, quiet=False)
    for piece in (b"one\r\n\x1b[2Jtw", "ö".encode()[:1], "ö".encode()[1:] + b"\n"):
        shown.write(piece)
    assert out.getvalue() == "one\n\ufffd[2Jtwö\n"
