# SPDX-License-Identifier: Apache-2.0
import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hyperd.model.vm import SandboxId
from hyperd.vm import console_tail
from hyperd.vm.console import CONSOLE_KEEP_BYTES, CONSOLE_LIMIT_BYTES, Consoles, trim_console
from hyperd.vm.libvirt.log import parse_qemu_words, qemu_log_tail, remove_qemu_log

LOG = """\
2026-01-01 00:00:00.000+0000: starting up libvirt version: 11.3.0, qemu version: 10.0.2
LC_ALL=C \\
/usr/bin/qemu-system-x86_64 \\
-name guest=hyper-0 \\
-msg timestamp=on
2026-01-01 00:00:00.000+0000: Domain id=1 is tainted: custom-hypervisor-feature
"""


def test_an_absent_console_is_no_evidence(tmp_path: Path) -> None:
    assert console_tail(tmp_path / "absent") == ""


def test_the_end_of_a_console_comes_in_whole_lines(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.write_bytes(b"first line\r\nsecond line\r\nthird line\r\n")
    assert console_tail(console) == "first line\nsecond line\nthird line"
    assert console_tail(console, 20) == "third line"


def test_what_a_guest_writes_cannot_steer_a_terminal(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.write_bytes(b"\x1b[2Jgone\x07\x9b\xff\ttab\n")
    assert console_tail(console) == "�[2Jgone���\ttab"


@given(data=st.binary(max_size=300), max_bytes=st.integers(1, 100))
def test_a_tail_is_bounded_and_printable(tmp_path_factory, data: bytes, max_bytes: int) -> None:
    console = tmp_path_factory.mktemp("console") / "log"
    console.write_bytes(data)
    tail = console_tail(console, max_bytes)
    assert len(tail) <= max_bytes
    assert all(char in "\n\t" or char.isprintable() for char in tail)


def test_an_overlong_console_gives_its_space_back_and_keeps_its_end(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.write_bytes(b"x" * 1_000_000 + b"\nKernel panic\n")
    assert not trim_console(console, limit_bytes=2_000_000)
    assert trim_console(console, limit_bytes=500_000)
    assert console.stat().st_blocks * 512 <= CONSOLE_KEEP_BYTES + 8192
    with console.open("ab") as file:
        file.write(b"more\n")
    assert console_tail(console, 100).endswith("Kernel panic\nmore")
    assert not trim_console(console, limit_bytes=500_000)
    assert not trim_console(tmp_path / "absent")


async def test_consoles_of_running_vms_are_kept_short(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.touch()
    consoles = Consoles(interval_s=0.01)
    consoles.add(SandboxId("a"), console)
    with consoles.kept_short():
        console.write_bytes(b"x" * (2 * CONSOLE_LIMIT_BYTES))
        async with asyncio.timeout(10):
            while console.stat().st_blocks * 512 > CONSOLE_LIMIT_BYTES:
                await asyncio.sleep(0.01)
    consoles.remove(SandboxId("a"))
    consoles.remove(SandboxId("a"))


def test_qemus_words_are_told_from_libvirts() -> None:
    assert parse_qemu_words(LOG) == ""
    assert (
        parse_qemu_words(LOG + "qemu-system-x86_64: could not open\n") == "qemu-system-x86_64: could not open"
    )
    assert parse_qemu_words(LOG + "old words\n" + LOG + "new words\n") == "new words"
    assert parse_qemu_words("") == ""


def test_a_log_is_removed_once(tmp_path: Path) -> None:
    (tmp_path / "hyper-0.log").write_text(LOG + "words\n")
    assert qemu_log_tail(tmp_path, "hyper-0") == "words"
    remove_qemu_log(tmp_path, "hyper-0")
    remove_qemu_log(tmp_path, "hyper-0")
    assert qemu_log_tail(tmp_path, "hyper-0") == ""
