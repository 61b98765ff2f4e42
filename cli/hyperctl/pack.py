# SPDX-License-Identifier: Apache-2.0
"""Files of ours -> a tar stream, in pieces, as they are read. GNU format: it carries any name and any size."""

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from hyperctl.errors import NOT_FOUND, CliError

CHUNK_BYTES = 1 << 20
BLOCK = 512
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def pack(source: str, name: str, *, follow: bool = False) -> Iterator[bytes]:
    """``source`` and all below it; the top entry is called ``name``. Sockets are left out, as everywhere.

    ``follow``: a link at the top is what it points to. Raises CliError for what cannot be read.
    """
    seen: dict[tuple[int, int], str] = {}
    waiting = [(source, name, follow)]
    while waiting:
        path, entry, through = waiting.pop()
        try:
            about = Path(path).stat(follow_symlinks=through)
            yield from pack_entry(path, entry, about, seen)
            if stat.S_ISDIR(about.st_mode):
                below = sorted((each.name for each in os.scandir(path)), reverse=True)
                waiting += [(f"{path}/{each}", f"{entry}/{each}", False) for each in below]
        except OSError as error:
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else 1
            raise CliError(
                f"cannot be read: {error.strerror or error}", subject=path, exit_status=status
            ) from error
    yield bytes(2 * BLOCK)


def pack_entry(
    path: str, name: str, about: os.stat_result, seen: dict[tuple[int, int], str]
) -> Iterator[bytes]:
    """Of one path alone. ``seen``: files that have another name, which become hard links. Raises OSError."""
    kind = _KINDS.get(stat.S_IFMT(about.st_mode))
    if kind is None:  # a socket
        return
    header = tarfile.TarInfo(name)
    header.type, header.mode = kind, stat.S_IMODE(about.st_mode)
    header.uid, header.gid, header.mtime = about.st_uid, about.st_gid, int(about.st_mtime)
    key = (about.st_dev, about.st_ino)
    if kind == tarfile.REGTYPE and about.st_nlink > 1 and key in seen:
        header.type, header.linkname = tarfile.LNKTYPE, seen[key]
    elif kind == tarfile.REGTYPE:
        yield from _file(path, header)
        if about.st_nlink > 1:
            seen[key] = name
        return
    elif kind == tarfile.SYMTYPE:
        header.linkname = os.readlink(path)  # noqa: PTH115 - Path would tidy it up
    elif kind in {tarfile.CHRTYPE, tarfile.BLKTYPE}:
        header.devmajor, header.devminor = os.major(about.st_rdev), os.minor(about.st_rdev)
    yield _render(header)


def _file(path: str, header: tarfile.TarInfo) -> Iterator[bytes]:
    """Exactly as many bytes as the header says, whatever is done to the file meanwhile."""
    with Path(path).open("rb", buffering=0) as file:
        header.size = left = os.fstat(file.fileno()).st_size
        yield _render(header)
        while left:
            data = file.read(min(left, CHUNK_BYTES))
            if not data:
                raise CliError("became shorter while it was read", subject=path)
            left -= len(data)
            yield data
    if padding := -header.size % BLOCK:
        yield bytes(padding)


def _render(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
