# SPDX-License-Identifier: Apache-2.0
"""What tests of saved VMs are made of: a compatibility, sparse files, streams in pieces."""

import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from hyperd.model.snapshot import Compatibility

ME = (os.geteuid(), os.getegid())
COMPATIBILITY = Compatibility(
    qemu_version="10.0.0",
    machine="pc-q35-10.0",
    cpu_model="max",
    accelerator="tcg",
    kernel_sha256="1" * 64,
    initramfs_sha256="2" * 64,
    cmdline="quiet",
    vcpus=1,
    memory_mib=256,
    layout="disk:image:ro,disk:writable:rw,nic",
)


def write_sparse(path: Path, size_bytes: int, data: Iterable[tuple[int, bytes]]) -> None:
    """Into a file that may exist: holes but for (offset, bytes)."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.truncate(size_bytes)
        for offset, piece in data:
            file.seek(offset)
            file.write(piece)


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
