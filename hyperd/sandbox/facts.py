# SPDX-License-Identifier: Apache-2.0
"""What of this host and installation a saved VM depends on. Files are read once, and again when they were replaced."""

import asyncio
import hashlib
import mmap
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from hyperd.host.files import file_errors
from hyperd.host.workers import Workers
from hyperd.sandbox.accelerator import fingerprint
from hyperd.sandbox.compatibility import HostFacts

CPUINFO = Path("/proc/cpuinfo")
_BANNER = re.compile(rb"Linux version (\d[\w.+-]*) ")  # init/version-timestamp.c
_NAMING = ("vendor_id", "cpu family", "model", "stepping")
_FEATURES = ("flags", "vmx flags")


class Facts:
    """``get`` costs three stats once the files are known.

    ``ask``: QEMU's version and the versioned name of its machine, as ``emulator`` is now.
    """

    def __init__(
        self,
        kernel: Path,
        initramfs: Path,
        *,
        emulator: Path,
        ask: Callable[[], Awaitable[tuple[str, str]]],
        files: Workers,
        cpuinfo: Path = CPUINFO,
    ) -> None:
        self._paths = (kernel, initramfs)
        self._emulator = emulator
        self._ask = ask
        self._files = files
        self._cpuinfo = cpuinfo
        self._lock = asyncio.Lock()
        self._known: tuple[tuple[str, ...], HostFacts] | None = None

    async def get(self) -> HostFacts:
        """Raises NotFoundError when kernel or initramfs is missing, and whatever ``ask`` raises."""
        key = tuple(fingerprint(path) for path in (*self._paths, self._emulator))
        async with self._lock:
            if self._known is None or self._known[0] != key:
                qemu_version, machine = await self._ask()
                self._known = (key, await self._files.call(self._read, qemu_version, machine))
            return self._known[1]

    def _read(self, qemu_version: str, machine: str) -> HostFacts:
        with file_errors(self._paths[0]):
            kernel, initramfs = (_sha256(path) for path in self._paths)
            return HostFacts(
                qemu_version=qemu_version,
                machine=machine,
                host_cpu=describe_cpu(self._cpuinfo.read_text(errors="replace")),
                kernel_sha256=kernel,
                initramfs_sha256=initramfs,
            )


def describe_cpu(cpuinfo: str) -> str:
    """The first processor by name, and a digest of what it can: equal where a guest would see the same CPU."""
    lines = cpuinfo.partition("\n\n")[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    features = "\n".join(" ".join(sorted(fields.get(name, "").split())) for name in _FEATURES)
    name = " ".join(fields[name] for name in _NAMING if name in fields) or "unknown"
    return f"{name} {hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kernel_release(kernel: Path) -> str:
    """As its own banner says, e.g. ``6.12.117``; "" for what has none, or is not there. Blocks."""
    try:
        with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _BANNER.search(content)
            return found[1].decode() if found else ""
    except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
        return ""
