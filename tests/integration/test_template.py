# SPDX-License-Identifier: Apache-2.0
"""Templates with real guests: built unasked, built when asked for, taken away, killed in the making."""

import dataclasses
import json
import secrets
import subprocess
from pathlib import Path

import pytest

from hyperd.model.snapshot import SavedFile
from hyperd.snapshot.digest import measure
from hyperd.snapshot.manifest import decode, encode
from tests.harness import Hyper, hyper, wait_until

BUSYBOX = "test.local/busybox"


def pulled(host: Hyper, layouts: Path) -> Hyper:
    host.ok("pull", "-q", f"oci:{layouts}/busybox:test.local/busybox:latest")
    return host


def started(host: Hyper, *options: str) -> dict[str, str]:
    """How a container started that is gone again."""
    name = f"t-{secrets.token_hex(4)}"
    host.ok("run", "-d", "--name", name, *options, BUSYBOX, "sleep", "1000", timeout_s=200)
    shown: dict[str, str] = json.loads(host.ok("inspect", name))[0]["Start"]
    host.ok("rm", "-f", name)
    return shown


def template_ids(host: Hyper) -> set[str]:
    return set(host.ok("template", "ls", "-q").split())


def test_the_default_size_has_one_soon_after_the_daemon_s_start(layouts: Path):
    with hyper() as host:
        pulled(host, layouts)
        wait_until(lambda: len(template_ids(host)) == 1, "the template is built", timeout_s=200)
        assert started(host)["Path"] == "template"
        host.require_no_leaks()


def test_a_new_size_boots_at_once_and_has_a_template_the_next_time(layouts: Path):
    with hyper() as host:
        pulled(host, layouts)
        before = template_ids(host)
        first = started(host, "-m", "96m", "--network", "none")
        assert first["Path"] == "cold"
        assert first["Note"] == "no template yet for 1 vCPU, 96 MiB, no network: being built"
        wait_until(lambda: "96MiB" in host.ok("template", "ls"), "the template is built", timeout_s=200)
        assert started(host, "-m", "96m", "--network", "none")["Path"] == "template"
        assert template_ids(host) > before
        host.require_no_leaks()


def test_a_container_that_starts_again_from_a_template_has_its_disk_as_it_left_it(layouts: Path):
    """The template's memory knows the disk as it was when it was new."""
    with hyper() as host:
        pulled(host, layouts)
        host.ok("template", "build", timeout_s=200)
        write = "cat /kept 2>/dev/null; echo line >> /kept; dd if=/dev/urandom of=/noise bs=1M count=8 2>/dev/null"
        host.ok("create", "--name", "box", BUSYBOX, "sh", "-c", write)
        for times in range(3):
            assert host.ok("start", "-a", "box").split() == ["line"] * times
            shown = json.loads(host.ok("inspect", "box"))[0]
            assert shown["Start"]["Path"] == "template"
            (disk,) = (host.state_dir / "storage/sandboxes").glob("*/writable.img")
            subprocess.run(["e2fsck", "-fn", str(disk)], check=True, capture_output=True)
        host.ok("rm", "box")
        host.require_no_leaks()


@pytest.mark.parametrize("share", ["true", "false"])
def test_what_runs_from_a_template_outlives_it_and_the_daemon(layouts: Path, share: str):
    with hyper(settings={"template.share_memory": share}) as host:
        pulled(host, layouts)
        host.ok("template", "build", timeout_s=200)
        host.ok(
            "run",
            "-d",
            "--name",
            "box",
            BUSYBOX,
            "sh",
            "-c",
            "dd if=/dev/zero of=/f bs=1M count=8; exec sleep 1000",
        )
        assert json.loads(host.ok("inspect", "box"))[0]["Start"]["Path"] == "template"
        host.ok("template", "rm", *template_ids(host))
        host.kill_daemon()
        host.start()
        assert host.ok("exec", "box", "sh", "-c", "md5sum < /f") == "96995b58d4cbf6aaa9041b4f00c7f6ae  -"
        host.ok("rm", "-f", "box")
        host.require_no_leaks()


def test_a_daemon_killed_in_the_middle_of_a_build_leaves_nothing_behind(layouts: Path):
    with hyper() as host:
        wait_until(lambda: bool(host.qemu_processes()), "the template's guest boots")
        host.kill_daemon()
        host.settings["template.enabled"] = "false"
        host.start()
        host.require_no_leaks()
        assert not template_ids(host)
        host.stop()
        host.settings["template.enabled"] = "true"
        host.start()
        wait_until(lambda: len(template_ids(host)) == 1, "the template is built", timeout_s=200)


def test_a_state_that_qemu_refuses_is_thrown_away_and_the_start_boots(layouts: Path):
    """Whole by its digests, and yet none: as another version's would be."""
    with hyper() as host:
        pulled(host, layouts)
        host.ok("template", "build", timeout_s=200)
        host.stop()
        for manifest in (host.state_dir / "snapshots").glob("*/*/manifest.json"):
            state = manifest.with_name("state")
            state.chmod(0o600)
            state.write_bytes(b"QEVM" + b"\xff" * 4096)
            reseal(manifest, state)
        host.start()
        start = started(host)
        assert start["Path"] == "cold"
        assert "the template was bad and is removed" in start["Note"]
        assert "cannot be restored" in start["Note"]
        wait_until(lambda: started(host)["Path"] == "template", "it is made anew", timeout_s=200)
        host.require_no_leaks()


def reseal(manifest: Path, state: Path) -> None:
    before = decode(manifest.read_bytes())
    digest, _ = measure(state)
    files = tuple(
        SavedFile("state", state.stat().st_size, digest) if file.name == "state" else file
        for file in before.files
    )
    manifest.chmod(0o600)
    manifest.write_bytes(encode(dataclasses.replace(before, files=files)))
    state.chmod(0o440)


def test_without_templates_every_start_boots(layouts: Path):
    with hyper(settings={"template.enabled": "false"}) as host:
        pulled(host, layouts)
        start = started(host)
        assert (start["Path"], start["Note"]) == ("cold", "templates are turned off ([template] enabled)")
        assert host.run("template", "build").returncode == 4
        assert "are turned off: every container boots a guest" in host.ok("doctor")
