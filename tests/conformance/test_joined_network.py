# SPDX-License-Identifier: Apache-2.0
"""`--network container:ID` as a user of Docker's expects it."""

from pathlib import Path

import pytest

from tests import images
from tests.harness import Hyper

IMAGE = "test.local/busybox"


@pytest.fixture
def web(host: Hyper, tmp_path: Path) -> str:
    images.write_layout(images.busybox_image(), tmp_path / "busybox", f"{IMAGE}:latest")
    host.ok("pull", "-q", f"oci:{tmp_path}/busybox:{IMAGE}:latest")
    serve = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www"
    return host.ok("run", "-d", "--name", "web", IMAGE, "sh", "-c", serve)


@pytest.mark.parametrize("named", [lambda web: "web", lambda web: web[:12], lambda web: web])
def test_localhost_is_the_other_containers_however_that_is_called(host: Hyper, web: str, named):
    network = f"container:{named(web)}"
    got = host.ok("run", "--rm", "--network", network, IMAGE, "wget", "-q", "-O", "-", "http://127.0.0.1/")
    assert got == "hello"
    created = host.ok("create", "--network", network, IMAGE)
    assert host.ok("inspect", "-f", "{{.HostConfig.NetworkMode}}", created) == f"container:{web}"
    assert host.ok("inspect", "-f", "{{json .NetworkSettings.Networks}}", created) == "{}"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hostname", "x"], "conflicting options: hostname and the network mode"),
        (["--dns", "192.0.2.1"], "conflicting options: dns and the network mode"),
        (
            ["--add-host", "x:192.0.2.1"],
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
        (["--mac-address", "02:00:00:00:00:01"], "conflicting options: mac-address and the network mode"),
        (["-p", "80"], "conflicting options: port publishing and the container type network mode"),
        (["-P"], "conflicting options: port publishing and the container type network mode"),
        (["--expose", "80"], "conflicting options: port exposing and the container type network mode"),
        (["--link", "web"], "container type network can't be used with links"),
    ],
)
def test_what_contradicts_it_is_refused_in_dockers_words(host: Hyper, web: str, flags: list[str], words: str):
    refused = host.run("create", "--network", "container:web", *flags, IMAGE)
    assert refused.returncode != 0
    assert words in refused.stderr.decode()


def test_the_other_has_to_be_there_and_to_run(host: Hyper, web: str):
    absent = host.run("run", "--network", "container:nobody", IMAGE, "true")
    assert absent.returncode == 125
    assert "no such container" in absent.stderr.decode().lower()
    host.ok("stop", "-t", "0", "web")
    stopped = host.run("run", "--rm", "--network", "container:web", IMAGE, "true")
    assert stopped.returncode == 125
    assert "cannot join network of a non running container" in stopped.stderr.decode()
    host.ok("start", "web")
    assert host.ok("run", "--rm", "--network", "container:web", IMAGE, "echo", "joined") == "joined"
