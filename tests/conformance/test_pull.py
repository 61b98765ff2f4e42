# SPDX-License-Identifier: Apache-2.0
"""Images from a registry: every way to name one, every way it can be bad."""

import json
import os
import signal
import subprocess
from pathlib import Path

from tests import images
from tests.harness import Hyper, hyper
from tests.registry import Registry


async def test_an_image_is_pulled_by_tag_run_and_removed(host: Hyper, hub: Registry):
    name = await hub.push(images.busybox_image(Cmd=["echo", "hello"]), "hello:1")
    assert host.run("run", "--rm", name).stdout == b"hello\n"  # run pulls what is missing
    assert name.rpartition(":")[0] in host.ok("images", "--format", "{{.Repository}}")
    host.ok("rmi", name)
    assert host.ok("images", "-q") == ""


async def test_an_image_is_pulled_by_digest(host: Hyper, hub: Registry):
    built = images.busybox_image(Cmd=["echo", "hello"])
    name = (await hub.push(built, "hello:1")).rpartition(":")[0]
    by_digest = f"{name}@{built.manifest_digest}"
    host.ok("pull", "-q", by_digest)
    assert host.ok("run", "--rm", by_digest) == "hello"
    assert json.loads(host.ok("inspect", by_digest))[0]["Id"] == built.image_id


async def test_an_unknown_tag_is_named(host: Hyper, hub: Registry):
    name = await hub.push(images.busybox_image(), "known:1")
    unknown = name.replace(":1", ":2") if name.endswith(":1") else f"{name}-2"
    finished = host.run("pull", unknown)
    assert finished.returncode == 3
    assert unknown in finished.stderr.decode()


async def test_a_digest_that_nothing_has_is_not_found(host: Hyper, hub: Registry):
    name = (await hub.push(images.busybox_image(), "known:1")).rpartition(":")[0]
    finished = host.run("pull", f"{name}@sha256:{'0' * 64}")
    assert finished.returncode == 3
    assert "0" * 64 in finished.stderr.decode()


async def test_a_corrupt_layer_is_refused_and_forgotten(host: Hyper, hub: Registry):
    built = images.busybox_image()
    name = await hub.push(built, "corrupt:1")
    blob = hub.blob_path(built.layer_digests[1])
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 0xFF
    blob.write_bytes(data)
    finished = host.run("pull", name)
    assert finished.returncode not in (0, 1)
    assert "Traceback" not in finished.stderr.decode()
    assert host.ok("images", "-q") == ""


async def test_an_image_for_another_architecture_says_so(host: Hyper, hub: Registry):
    name = await hub.push(images.build([images.busybox_entries()], architecture="arm64"), "arm:1")
    finished = host.run("run", "--rm", name, "true")
    assert finished.returncode == 125
    assert "arm64" in finished.stderr.decode()
    assert "amd64" in finished.stderr.decode()


async def test_a_full_disk_is_said_and_leaves_nothing(hub: Registry):
    name = await hub.push(images.busybox_image(), "big:1")
    with hyper(tmpfs_mib=200) as small:
        finished = small.run("pull", name)
        assert finished.returncode == 5, finished.stderr.decode()
        assert "space" in finished.stderr.decode()
        assert small.ok("images", "-q") == ""


async def test_an_interrupted_pull_leaves_nothing_half_made(host: Hyper, hub: Registry):
    noise = images.file("noise", os.urandom(60_000_000))
    built = images.build(
        [images.busybox_entries(), [noise]], config=images.busybox_config(Cmd=["echo", "whole"])
    )
    name = await hub.push(built, "large:1")
    with subprocess.Popen(host.argv("pull", name), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        while b"Downloading" not in (line := child.stdout.readline()):
            assert line, "the pull ended before it was interrupted"
        child.send_signal(signal.SIGINT)
        child.wait(30)
    assert host.ok("images", "-q") == ""
    host.ok("pull", "-q", name)
    assert host.ok("run", "--rm", name) == "whole"


async def test_two_pulls_at_once_both_succeed(host: Hyper, hub: Registry):
    name = await hub.push(images.busybox_image(), "twice:1")
    both = [subprocess.Popen(host.argv("pull", "-q", name), stdout=subprocess.PIPE) for _ in range(2)]
    assert [child.wait(60) for child in both] == [0, 0]
    for child in both:
        child.communicate()


def test_archives_of_both_kinds_are_images_too(host: Hyper, tmp_path: Path):
    built = images.busybox_image(Cmd=["echo", "hello"])
    images.write_archive(built, tmp_path / "oci.tar", "test.local/oci:latest")
    host.ok("pull", "-q", f"oci-archive:{tmp_path}/oci.tar:test.local/oci:latest")
    assert host.ok("run", "--rm", "test.local/oci") == "hello"
