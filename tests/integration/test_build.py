# SPDX-License-Identifier: Apache-2.0
"""`hyper build` with its real engine in a real guest: from directories and pipes, cached, failed, cut short."""

import errno
import gzip
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import pytest

from tests import images
from tests.harness import Hyper, hyper, wait_until
from tests.integration.test_network import outside as outside  # noqa: PLC0414 - a fixture
from tests.integration.test_network import owner_of
from tests.repositories import Repository, git_daemon

BASE = "test.local/base"
BUILD_TIMEOUT_S = 280.0
SECRET = "open-sesame-4711"
DOCKERFILE = """\
FROM test.local/base AS made
ARG WHO=nobody
COPY greeting /greeting
RUN --mount=type=secret,id=word cat /greeting > /made && echo "$WHO" >> /made && \\
    wc -c < /run/secrets/word >> /made && sync

FROM test.local/base
LABEL stage=last
HEALTHCHECK CMD true
COPY --from=made /made /made
CMD ["cat", "/made"]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hyper]:
    """One of its own: builds come up and go down beside nobody else's sandboxes."""
    history = [{"created": "2026-01-02T03:04:05Z", "created_by": "busybox"}]
    # Other tools give a file the mode of its last name, so a hard link's has to be right.
    entries = [replace(entry, mode=0o755) if entry.linkname else entry for entry in images.busybox_entries()]
    base = images.build([entries], config=images.busybox_config(), top={"history": history})
    place = tmp_path_factory.mktemp("base")
    images.write_layout(base, place / "oci", f"{BASE}:latest")
    with hyper(settings={"build.memory_mib": "512"}) as host:
        host.ok("pull", "-q", f"oci:{place}/oci:{BASE}:latest")
        yield host


@pytest.fixture
def host(daemon: Hyper) -> Iterator[Hyper]:
    yield daemon
    assert not daemon.ok("ps", "-aq")
    daemon.require_no_leaks()


@dataclass
class Project:
    place: Path

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.place / name).write_text(text)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    found = Project(tmp_path)
    found.write(Dockerfile=DOCKERFILE, greeting="hello\n", secret=SECRET)
    (tmp_path / ".dockerignore").write_text("secret\n")
    return found


def build(host: Hyper, *arguments: str, stdin: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    return host.run("build", *arguments, stdin=stdin, timeout_s=BUILD_TIMEOUT_S)


def require_built(finished: "subprocess.CompletedProcess[bytes]", host: Hyper) -> str:
    said = finished.stderr.decode(errors="replace")
    assert finished.returncode == 0, f"{said}\n--- hyperd:\n{host.log_tail()}"
    return said


def test_a_dockerfile_becomes_an_image_that_runs_and_the_second_build_is_cached(
    host: Hyper, project: Project
):
    arguments = (
        *("-t", "test.local/made:1", "-t", "made:2", "--build-arg", "WHO=me"),
        *("--secret", f"id=word,src={project.place}/secret", "--iidfile", f"{project.place}/id"),
        str(project.place),
    )
    said = require_built(build(host, *arguments), host)
    image_id = (project.place / "id").read_text()

    assert f"Successfully built {image_id}" in said
    assert "Successfully tagged made:2" in said
    assert host.ok("run", "--rm", "test.local/made:1") == f"hello\nme\n{len(SECRET)}"
    image = json.loads(host.ok("inspect", "made:2"))[0]
    assert image["Id"] == image_id
    assert image["Config"]["Labels"] == {"stage": "last"}
    assert image["Config"]["Healthcheck"] == {"Test": ["CMD-SHELL", "true"]}
    base = json.loads(host.ok("inspect", BASE))[0]
    layers = image["RootFS"]["Layers"]
    assert layers[: len(base["RootFS"]["Layers"])] == base["RootFS"]["Layers"]
    assert SECRET not in said + host.log.read_text()
    saved = host.run("save", "made:2").stdout
    assert SECRET.encode() not in b"".join(_layers(saved))
    # Not in the cache either, where the step's `sync` would have put it, and whence nothing wipes it.
    cache = b"".join(_written(host.state_dir / "volumes"))
    assert b"overlay-layers" in cache
    assert SECRET.encode() not in cache

    again = require_built(build(host, *arguments), host)
    assert again.count("Using cache") >= 5
    assert (project.place / "id").read_text() == image_id


def _written(place: Path) -> Iterator[bytes]:
    """What the files below it hold, without their holes."""
    for path in place.rglob("*"):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            end = path.stat().st_size
            at = 0
            while at < end:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # only a hole follows
                        raise
                    break
                hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                yield os.pread(file.fileno(), hole - at, at)
                at = hole


def _layers(archive: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            data = file.read() if file is not None else b""
            yield gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def test_a_step_that_fails_shows_why_and_leaves_no_image(host: Hyper):
    before = users_images(host)
    finished = build(
        host, "-t", "never:1", "-", stdin=b"FROM test.local/base\nRUN echo oh dear >&2; exit 7\n"
    )
    said = finished.stderr.decode()

    assert finished.returncode == 1
    assert "oh dear" in said
    assert "exit status 7" in said
    assert users_images(host) == before


def users_images(host: Hyper) -> set[str]:
    lines = host.ok("images", "--format", "{{.Repository}} {{.ID}}").splitlines()
    return {line for line in lines if not line.startswith("hyper/builder ")}


def test_a_tar_on_standard_input_is_a_context_and_a_stage_can_be_the_target(host: Hyper):
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in (
            (
                "sub/Other",
                "FROM test.local/base AS one\nCOPY . /c\nRUN ls /c > /l\nFROM scratch\nCOPY no /\n",
            ),
            (".dockerignore", "left-out\n"),
            ("left-out", ""),
            ("taken", ""),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, BytesIO(text.encode()))
    finished = build(
        host,
        "-t",
        "piped",
        "-f",
        "sub/Other",
        "--target",
        "one",
        "--network",
        "none",
        "-",
        stdin=content.getvalue(),
    )
    require_built(finished, host)
    assert host.ok("run", "--rm", "piped", "cat", "/l").split() == ["sub", "taken"]


@pytest.fixture
def repository(outside: str, tmp_path: Path) -> Iterator[str]:
    """Where it is, on a server that the builder reaches through the network. `side` has more in it than `main`."""
    inside = ("nsenter", "-t", owner_of("out1"), "-n")
    with git_daemon(tmp_path, outside, inside=inside) as top:
        part, app = Repository(tmp_path, "part"), Repository(tmp_path, "app")
        app.commit({"Dockerfile": "FROM test.local/base\nRUN echo wrong; exit 7\n"})
        app.git("checkout", "-q", "-b", "side")
        steps = "COPY . /c\nRUN echo seen: $(ls -A /c /c/part) $(cat /c/part/of)\n"
        app.commit(
            {"server/Dockerfile": f"FROM test.local/base\n{steps}", "server/.dockerignore": "left-out\n"}
        )
        app.commit({"server/left-out": "", "server/taken": ""})
        app.add_submodule("server/part", f"{top}/part", part.commit({"of": "fetched\n"}))
        app.git("checkout", "-q", "main")
        yield f"{top}/app"


def test_a_repository_is_fetched_at_a_ref_with_its_submodules_and_a_directory_of_it_built(
    host: Hyper, repository: str
):
    said = require_built(build(host, "-t", "fetched", f"{repository}#side:server"), host)
    assert "seen: /c: .dockerignore Dockerfile part taken /c/part: of fetched\n" in said


def test_a_ref_that_a_repository_does_not_have_is_said(host: Hyper, repository: str):
    finished = build(host, f"{repository}#nowhere")
    assert finished.returncode == 3
    assert b"no branch, tag or commit nowhere" in finished.stderr


def let_it_wait(client: "subprocess.Popen[bytes]") -> None:
    """Until a step of the build runs that has no end."""
    assert client.stdin is not None
    assert client.stderr is not None
    client.stdin.write(b"FROM test.local/base\nRUN echo waiting; sleep 1000\n")
    client.stdin.close()
    seen = b""
    while b"waiting\n" not in seen:
        line = client.stderr.readline()
        assert line, seen.decode()
        seen += line


def test_what_a_killed_daemon_was_building_is_gone_after_its_restart(host: Hyper):
    with subprocess.Popen(
        host.argv("build", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as client:
        let_it_wait(client)
        host.kill_daemon()
        assert client.wait(60) == 7
    host.start()
    wait_until(lambda: not host.ok("ps", "-aq"), "the builder is ended", timeout_s=120)
    again = build(host, "-q", "-", stdin=b"FROM test.local/base\nRUN true\n")
    assert require_built(again, host) == ""
    assert again.stdout.startswith(b"sha256:")
    assert "was not closed" not in host.log.read_text()


def test_an_interrupted_build_leaves_nothing(host: Hyper):
    with subprocess.Popen(
        host.argv("build", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as client:
        let_it_wait(client)
        client.send_signal(2)
        assert client.wait(60) == 130
    wait_until(lambda: not host.ok("ps", "-aq"), "the builder is ended", timeout_s=120)
