# SPDX-License-Identifier: Apache-2.0
"""The set-up's pure parts, and its runner's promises: skip what is current, explain what failed."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from guestkernel import build
from setup import agent, cache, debian, erofs, initramfs, install, kernel, packages, step, virtiofsd
from setup.__main__ import chosen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class FakeStep:
    name = "fake"

    def __init__(self, key: str = "one", command: tuple[str, ...] = ("true",)) -> None:
        self.now = key
        self.command = command
        self.ready = True
        self.runs = 0

    def key(self) -> str:
        return self.now

    def is_ready(self) -> bool:
        return self.ready

    def run(self, job: step.Job) -> None:
        self.runs += 1
        job.hint = "tighten the screws"
        job.run(*self.command)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "LOGS", tmp_path / "log")
    monkeypatch.setattr(step, "STAMPS", tmp_path / "stamp")
    monkeypatch.setattr(step, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(cache, "CACHE", tmp_path / "cache")


def test_users_make_nothing_that_only_tests_need() -> None:
    for_users, for_tests = chosen((), tests=False), chosen((), tests=True)
    assert for_tests == {"testpackages", "busybox", "postgres", "servers"}
    assert {"kernel", "agent", "prepare"} <= for_users
    assert not for_users & for_tests
    assert chosen(("postgres",), tests=False) == {"postgres"}


def test_each_suite_of_real_guests_makes_their_images_first() -> None:
    shown = [
        line
        for line in (step.ROOT / "Makefile").read_text().splitlines()
        if "test-images" in line.split("##")[0]
    ]
    needs = {line.split(":")[0] for line in shown if not line.startswith((".PHONY", "test-images"))}
    assert needs == {"test", "contract", "integration", "conformance", "bench"}


def test_a_current_step_is_skipped() -> None:
    one = FakeStep()
    step.run_steps([one])
    step.run_steps([one])
    assert one.runs == 1


@pytest.mark.parametrize("change", ["key", "outputs", "force"])
def test_a_step_runs_again_when_something_changed(change: str) -> None:
    one = FakeStep()
    step.run_steps([one])
    one.now = "two" if change == "key" else one.now
    one.ready = change != "outputs"
    step.run_steps([one], force=frozenset({"fake"} if change == "force" else ()))
    assert one.runs == 2


def test_a_failed_step_says_which_why_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    broken = FakeStep(command=("sh", "-c", "echo the screw is loose; exit 3"))
    with pytest.raises(SystemExit) as exit_:
        step.run_steps([broken, FakeStep()])
    told = capsys.readouterr().err
    assert exit_.value.code == 1
    for words in ("`fake` FAILED", "status 3", "| the screw is loose", "fake.log", "tighten the screws"):
        assert words in told
    broken.command = ("true",)
    step.run_steps([broken])
    assert broken.runs == 2


def test_a_step_alongside_is_over_before_the_last_one_begins(capsys: pytest.CaptureFixture[str]) -> None:
    slow, quick, last = FakeStep(command=("sleep", "0.3")), FakeStep(), FakeStep()
    slow.name, quick.name, last.name = "slow", "quick", "last"
    step.run_steps([slow, quick, last], alongside=frozenset({"slow"}))
    told = [line for line in capsys.readouterr().out.splitlines() if " done in " in line]
    assert [line.split()[1] for line in told] == ["quick", "slow", "last"]


def test_a_failure_alongside_keeps_the_last_step_from_running(capsys: pytest.CaptureFixture[str]) -> None:
    broken, quick, last = FakeStep(command=("false",)), FakeStep(), FakeStep()
    broken.name, quick.name, last.name = "broken", "quick", "last"
    with pytest.raises(SystemExit):
        step.run_steps([broken, quick, last], alongside=frozenset({"broken"}))
    assert (quick.runs, last.runs) == (1, 0)
    assert "`broken` FAILED" in capsys.readouterr().err


def test_a_program_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.run_steps([FakeStep(command=("no-such-program-here",))])
    assert "no-such-program-here is not installed" in capsys.readouterr().err


def test_a_cache_entry_is_built_once_and_never_half(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        (out / "half").touch()
        raise step.StepError("no")

    with pytest.raises(step.StepError):
        cache.make_entry("kind", "key", fail)
    assert not cache.entry("kind", "key").exists()
    place = cache.make_entry("kind", "key", lambda out: (out / "whole").touch())
    assert cache.make_entry("kind", "key", fail) == place
    assert [path.name for path in place.iterdir()] == ["whole"]
    assert place.stat().st_mode & 0o777 == 0o755
    assert [
        path.name for path in (tmp_path / "cache" / "kind").iterdir() if path.name.startswith(".key")
    ] == []


def test_an_alias_finds_its_entry() -> None:
    place = cache.make_entry("kind", "key", lambda out: (out / "whole").touch())
    cache.set_alias("kind", "other", "key")
    cache.set_alias("kind", "other", "key")
    assert cache.entry("kind", "other").resolve() == place


def test_cpio_reads_the_initramfs_back(tmp_path: Path) -> None:
    archive = initramfs.render_newc(initramfs.agent_entries(b"the agent"))
    (tmp_path / "archive").write_bytes(archive)
    root = tmp_path / "root"
    root.mkdir()
    with (tmp_path / "archive").open("rb") as source:
        listing = subprocess.run(
            ["cpio", "-t", "--quiet"], stdin=source, capture_output=True, text=True, check=True
        )
    assert listing.stdout.split() == ["dev", "proc", "run", "sys", "tmp", "dev/console", "init"]
    assert archive == initramfs.render_newc(initramfs.agent_entries(b"the agent"))
    assert len(archive) % 4 == 0


def test_an_option_that_did_not_take_is_named() -> None:
    wanted = build.parse_options("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=n\nCONFIG_D=64\n")
    had = build.parse_options("CONFIG_A=y\nCONFIG_C=y\n")
    assert build.refused_options(wanted, had) == [
        "CONFIG_C: asked for n, got y",
        "CONFIG_D: asked for 64, got n",
    ]


@pytest.mark.parametrize("text", ["CONFIG_A=y\nCONFIG_A=n", "CONFIG A=y"])
def test_a_muddled_fragment_is_refused(text: str) -> None:
    with pytest.raises(build.BuildError):
        build.parse_options(text)


def test_every_option_of_the_kernel_has_a_reason_above_it() -> None:
    reasoned = False
    for line in build.FRAGMENT.read_text().splitlines():
        if not line.startswith("CONFIG_"):
            reasoned = line.startswith("# ")
        else:
            assert reasoned, line


def test_notes_of_other_owners_are_no_pvh_entry() -> None:
    def note(name: bytes, kind: int) -> bytes:
        header = b"".join(value.to_bytes(4, "little") for value in (len(name), 8, kind))
        return header + name + b"\0" * (-len(name) % 4) + bytes(8)

    assert build.note_types(note(b"GNU\0", 18) + note(b"Linux\0", 18)) == set()
    assert build.note_types(note(b"GNU\0", 3) + note(b"Xen\0", 18)) == {18}


def test_the_program_is_found_among_cargos_messages() -> None:
    messages = [
        {"reason": "compiler-artifact", "target": {"name": "hyper-agent"}, "executable": None},
        {"reason": "compiler-artifact", "target": {"name": "hyper-agent"}, "executable": "/t/hyper-agent"},
        {"reason": "build-finished", "success": True},
    ]
    assert str(agent.executable_in("\n".join(map(json.dumps, messages)))) == "/t/hyper-agent"
    with pytest.raises(step.StepError):
        agent.executable_in(json.dumps(messages[2]))


def test_a_shared_program_is_refused() -> None:
    with pytest.raises(step.StepError):
        agent.require_static(b"not a program at all")


def test_the_pinned_kernel_is_taken_while_debian_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    job = step.Job("kernel", log=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with job.log:
        monkeypatch.setattr(kernel, "pinned_version", lambda: "6.12.5")
        monkeypatch.setattr(debian, "known_versions", lambda _: ["6.12.9-1", "6.12.5-2~deb12u1", "6.12.50-1"])
        assert kernel.choose_version(job) == "6.12.5-2~deb12u1"
        monkeypatch.setattr(kernel, "pinned_version", lambda: "6.12.1")
        assert kernel.choose_version(job) == "6.12.9-1"


def test_a_program_that_tells_no_version_is_too_old(tmp_path: Path) -> None:
    program = tmp_path / "mkfs.erofs"
    program.write_text("#!/bin/sh\necho mkfs.erofs 1.8.6\n")
    program.chmod(0o755)
    assert erofs.version_of(program) == (1, 8, 6)
    assert erofs.version_of(tmp_path / "none") == ()


def test_a_debian_version_is_shown_plainly() -> None:
    assert packages.plain("1:10.0.2+ds-2+deb13u1~bpo12+1") == "10.0.2"


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(place: Path) -> None:
        (place / "file").write_text(text)

    return fill


def test_a_version_replaces_the_one_before_and_leaves_it_to_who_still_runs_it(tmp_path: Path) -> None:
    home = tmp_path / "lib/hyper"
    places = []
    for text in ("one", "two", "three"):
        places.append(install.put_version(home, fill_with(text)))
        assert (home / "current/file").read_text() == text
    assert sorted(path.name for path in home.iterdir()) == ["2", "3", "current"]
    assert (places[1] / "file").read_text() == "two"


def test_a_version_that_cannot_be_made_leaves_the_installed_one(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").touch()
        assert (home / "current/file").read_text() == "one", "it works while the next one is made"
        raise step.StepError("no mirror")

    home = tmp_path / "hyper"
    install.put_version(home, fill_with("one"))
    with pytest.raises(step.StepError):
        install.put_version(home, fail)
    assert (home / "current/file").read_text() == "one"
    assert sorted(path.name for path in home.iterdir()) == ["1", "current"]


def test_systemd_is_told_when_the_daemon_answers() -> None:
    """`systemctl start hyperd && hyper run` must not race; hyperd/host/systemd.py sends what the unit waits for."""
    lines = (step.ROOT / "packaging/hyperd.service").read_text().splitlines()
    assert {"Type=notify", "NotifyAccess=main", "KillMode=process"} <= set(lines)


def test_virtiofsd_is_started_with_what_lies_beside_it_wherever_that_is(tmp_path: Path) -> None:
    for name in ("cache", "installed"):
        place = tmp_path / name
        place.mkdir()
        (place / "virtiofsd").write_text(virtiofsd.WRAPPER)
        (place / virtiofsd.LOADER).write_text(f"#!/bin/sh\necho virtiofsd 1.13.2 {name} $3\n")
        for program in ("virtiofsd", virtiofsd.LOADER):
            (place / program).chmod(0o755)
        told = step.capture(str(place / "virtiofsd"), "--version")
        assert told == f"virtiofsd 1.13.2 {name} {place}/virtiofsd.bin\n"
        assert virtiofsd.require_version(place / "virtiofsd") == (1, 13, 2)


def test_a_virtiofsd_that_is_too_old_or_none_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "virtiofsd"
    program.write_text("#!/bin/sh\necho virtiofsd 1.10.0\n")
    program.chmod(0o755)
    for wrong in (program, tmp_path / "none"):
        with pytest.raises(step.StepError, match="is needed"):
            virtiofsd.require_version(wrong)
