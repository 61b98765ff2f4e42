# SPDX-License-Identifier: Apache-2.0
"""QEMUs that libvirt started to ask what they can, when hyperd was killed before they had answered.

libvirt ends such a QEMU itself, but nobody does when libvirt's own process is gone: it has no guest, and waits for
ever. libvirt asks when its cache of answers is missing or old, and on some virtual machines it takes it for old at
random ("host cpuid changed").
"""

import logging
import os
import shutil
from pathlib import Path

from hyperd.host.held import HeldProcess
from hyperd.vm.libvirt.settings import LibvirtSettings

_log = logging.getLogger(__name__)

_KILL_TIMEOUT_S = 5.0


async def end_probes(settings: LibvirtSettings) -> None:
    """Of the embedded driver's root, which no other process may have open."""
    for directory in (settings.root / "lib/qemu").glob("qmp-*"):
        process = _find(directory)
        if process is not None:
            _log.warning("a probe of QEMU was cut off", extra={"pid": process.pid})
            await process.end(_KILL_TIMEOUT_S)
        shutil.rmtree(directory, ignore_errors=True)


def _find(directory: Path) -> HeldProcess | None:
    try:
        process = HeldProcess.of(int((directory / "qmp.pid").read_text()))
    except (OSError, ValueError):
        return None
    # Only now, with the pid held, is it certain whose command line this is.
    if process is not None and not _is_probe(process.pid, directory):
        process.close()
        return None
    return process


def _is_probe(pid: int, directory: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(directory / "qmp.pid") in words
