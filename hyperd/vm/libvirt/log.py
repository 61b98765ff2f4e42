# SPDX-License-Identifier: Apache-2.0
"""What QEMU itself said, from the log that libvirt keeps for each domain."""

import contextlib
from pathlib import Path

from hyperd.vm.console import read_tail

_TAIL_BYTES = 16 * 1024  # the command line alone has some 4 KiB
_EVIDENCE_BYTES = 2048


def parse_qemu_words(log: str) -> str:
    """Without what libvirt writes at each start: a header, whose lines but the last end in a backslash, and taints."""
    lines = log.splitlines()
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].endswith("\\"):
            lines = lines[number + 2 :]
            break
    said = [line for line in lines if line.strip() and " is tainted: " not in line]
    return "\n".join(said)[-_EVIDENCE_BYTES:]


def qemu_log_tail(log_dir: Path, name: str) -> str:
    return parse_qemu_words(read_tail(log_dir / f"{name}.log", _TAIL_BYTES).decode(errors="replace"))


def remove_qemu_log(log_dir: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        (log_dir / f"{name}.log").unlink()
