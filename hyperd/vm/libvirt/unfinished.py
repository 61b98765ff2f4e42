# SPDX-License-Identifier: Apache-2.0
"""Starts that were cut off because hyperd was killed in their midst.

libvirt keeps the start as a job that nobody owns: at the next open every question to that domain waits 30 s for the
job, and no destroy ever ends it. Nobody was told that such a VM runs, so before libvirt is opened its process is
ended and what libvirt wrote of it goes.

For libvirt a start that restores ends before QEMU reads the saved state. A mark beside libvirt's own files stands
until the VM runs.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from hyperd.vm.libvirt.process import QemuProcess
from hyperd.vm.libvirt.settings import LibvirtSettings
from hyperd.vm.libvirt.xml import find_sandbox_id

_log = logging.getLogger(__name__)

_NAME_IN_PATHS = 20  # characters of a domain's name in libvirt's directories
_KILL_TIMEOUT_S = 5.0
_MARK = ".restoring"


@contextlib.contextmanager
def unfinished(settings: LibvirtSettings, name: str) -> Iterator[None]:
    """While this lasts the VM is one that the next hyperd ends. Not for a libvirtd's: it has its own directory."""
    if not settings.embedded:
        yield
        return
    mark = settings.pid_dir / f"{name}{_MARK}"
    mark.touch()
    try:
        yield
    finally:
        mark.unlink()


async def end_unfinished(settings: LibvirtSettings) -> None:
    """Of the embedded driver's root, which no other process may have open."""
    for name in {path.name.split(".")[0] for path in settings.pid_dir.glob("hyper-*.*")}:
        if find_sandbox_id(name) is None:
            continue
        status = settings.pid_dir / f"{name}.xml"
        # libvirt was killed while it wrote.
        status.with_suffix(".xml.new").unlink(missing_ok=True)
        # A pid without a status is from libvirt's launcher, which may outlive a killed hyperd by a moment.
        mark = settings.pid_dir / f"{name}{_MARK}"
        if status.exists() and not mark.exists() and not _is_unfinished(status):
            continue
        _log.warning("a start was cut off", extra={"domain": name})
        await _end_process(settings, name)
        for directory in _directories(settings, name):
            shutil.rmtree(directory, ignore_errors=True)
        for path in (settings.pid_dir / f"{name}.pid", status, mark):
            path.unlink(missing_ok=True)


async def _end_process(settings: LibvirtSettings, name: str) -> None:
    process = QemuProcess.find(settings.pid_dir, name)
    if process is not None:
        await process.end(_KILL_TIMEOUT_S)


def _is_unfinished(status: Path) -> bool:
    try:
        root = ET.parse(status).getroot()  # noqa: S314 - libvirt's own
    except (OSError, ET.ParseError):
        return False
    return root.get("reason") == "starting up" or any(job.get("async") == "start" for job in root.iter("job"))


def _directories(settings: LibvirtSettings, name: str) -> Iterator[Path]:
    short = name[:_NAME_IN_PATHS]
    yield from (settings.root / "lib/qemu").glob(f"domain-*-{short}")
    yield from (settings.pid_dir / "channel").glob(f"*-{short}")
