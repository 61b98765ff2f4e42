# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, and copies that cost nothing for what is not there.

Everything here blocks: call it through a room's ``Workers``.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    ExistsError,
    HyperError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from hyperd.host.workers import Wanted

_FICLONE = 0x40049409  # linux/fs.h
_CHUNK_BYTES = 4 << 20
_RANGE_BYTES = 64 << 20  # copied by the kernel in one go: so long it takes until nobody wants a copy any more
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLONE_IMPOSSIBLE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ENOSYS}
)
TEMPORARY_SUFFIX = ".tmp"
_WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRIES_AT_ONCE = 1000


@contextlib.contextmanager
def file_errors(subject: object) -> Iterator[None]:
    """Translate ``OSError`` where a room meets the filesystem."""
    try:
        yield
    except OSError as error:
        kind: type[HyperError] = UnavailableError
        brief, hint = f"cannot be used: {error.strerror or error}", ""
        if error.errno in _NO_SPACE:
            kind, brief, hint = (
                ExhaustedError,
                "no space left",
                "remove images, volumes or sandboxes that are not needed",
            )
        elif isinstance(error, FileNotFoundError):
            kind = NotFoundError
        elif isinstance(error, FileExistsError):
            kind = ExistsError
        elif isinstance(error, PermissionError):
            kind = DeniedError
        raise kind(brief, subject=str(error.filename or subject), hint=hint) from error


def make_directory(path: Path, mode: int) -> None:
    """With exactly this mode, whatever the umask; existing: only the mode is set."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)


def sync(path: Path) -> None:
    """Of a file its content, of a directory its entries."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, target: Path) -> None:
    """Give a finished file its name so that after a power cut it is whole or absent."""
    sync(temporary)
    temporary.rename(target)
    sync(target.parent)


def temporary_beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def write_atomic(target: Path, data: bytes, *, mode: int = 0o644) -> None:
    temporary = temporary_beside(target)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
            os.fchmod(file.fileno(), mode)
            file.write(data)
        publish(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_sparse(
    source: Path,
    target: Path,
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    keep_free_bytes: int | None = None,
    wanted: Wanted | None = None,
    synced: bool = False,
) -> None:
    """A copy under its name only when it is whole: shared blocks where the filesystem can (FICLONE), else data only.

    Not ``synced``: for files that mean nothing after a power cut. An existing target is replaced. With
    ``keep_free_bytes`` a copy of data that would leave less than that on the filesystem is refused before it begins
    (ExhaustedError). When it is not ``wanted`` any more the target stays as it was (NotWantedError).
    """
    wanted = wanted or Wanted()
    temporary = temporary_beside(target)
    try:
        with source.open("rb") as reader:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                os.fchmod(descriptor, mode)
                if owner is not None:
                    os.fchown(descriptor, *owner)
                if not _clone(reader.fileno(), descriptor):
                    if keep_free_bytes is not None:
                        need_bytes = os.fstat(reader.fileno()).st_blocks * 512
                        require_free(target.parent, need_bytes, keep_bytes=keep_free_bytes, what="a copy")
                    _copy_data(reader.fileno(), descriptor, wanted)
                if synced:
                    wanted.require()
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        wanted.require()
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def clone(source: Path, target: Path) -> None:
    """A copy of one moment, whoever writes meanwhile: by sharing blocks. Raises UnsupportedError, with no target."""
    with source.open("rb") as reader, target.open("xb") as writer:
        if _clone(reader.fileno(), writer.fileno()):
            return
    target.unlink()
    raise UnsupportedError(
        "its file system cannot share blocks between files",
        subject=str(target.parent),
        hint="XFS and btrfs can",
    )


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CLONE_IMPOSSIBLE:
            return False
        raise
    return True


def copy_into(source: int, target: int) -> None:
    """The data of one open file into another of its size; what is a hole there stays as it is here."""
    _copy_data(source, target, Wanted())


def _copy_data(source: int, target: int, wanted: Wanted) -> None:
    size = os.fstat(source).st_size
    if os.fstat(target).st_size != size:
        os.ftruncate(target, size)
    for start, end in data_extents(source, size):
        for offset in range(start, end, _RANGE_BYTES):
            wanted.require()
            _copy_range(source, target, offset, min(offset + _RANGE_BYTES, end))


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what the filesystem does not know to be a hole. A hint: it may report zeros, or all, as data."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end
        offset = max(end, offset + 1)  # of a file that shrinks meanwhile


def data_blocks(descriptor: int, size: int, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each aligned block that is not all zeros; bytes are b"" after each 64 MiB of others.

    So that whoever reads a file of zeros, which a guest may have made of any size, can give it up.
    """
    zeros = bytes(block_bytes)
    done = skipped = 0
    for start, end in data_extents(descriptor, size):
        for offset in range(max(done, start - start % block_bytes), end, block_bytes):
            done = offset + block_bytes
            block = os.pread(descriptor, min(block_bytes, size - offset), offset)
            if block != zeros[: len(block)]:
                skipped = 0
                yield offset, block
            elif (skipped := skipped + len(block)) >= _RANGE_BYTES:
                skipped = 0
                yield offset, b""


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    offset = start
    try:
        while offset < end:
            copied = os.copy_file_range(source, target, end - offset, offset, offset)
            if not copied:
                return
            offset += copied
    except OSError as error:
        if error.errno not in _CLONE_IMPOSSIBLE:  # the kernel does not copy between any two filesystems
            raise
    while offset < end:
        data = os.pread(source, min(_CHUNK_BYTES, end - offset), offset)
        if not data:
            return
        write_at(target, data, offset)
        offset += len(data)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """All of it."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


def free_bytes(path: Path) -> int:
    """What an unprivileged writer can still get on the filesystem of ``path``."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def require_free(directory: Path, need_bytes: int, *, keep_bytes: int, what: str) -> None:
    """Raises ExhaustedError, with the arithmetic, when ``need_bytes`` would leave less than ``keep_bytes``."""
    free = free_bytes(directory)
    if free - need_bytes < keep_bytes:
        needed = f"{need_bytes >> 20} MiB are needed, " if need_bytes else ""
        raise ExhaustedError(
            f"no space for {what}",
            subject=str(directory),
            evidence=f"{needed}{free >> 20} MiB are free, {keep_bytes >> 20} MiB are kept in reserve",
            hint="remove images, volumes, snapshots or sandboxes that are not needed",
        )


def remove_tree(path: Path) -> None:
    """Idempotent; never follows a symbolic link, however deep the tree is and whoever made it."""
    with contextlib.suppress(FileNotFoundError):
        try:
            root = os.open(path, _WALK)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            path.unlink()
            return
        try:
            while some := _some_entries(root):
                for name, is_directory in some:
                    _remove_at(root, root, name, is_directory=is_directory)
        finally:
            os.close(root)
        path.rmdir()


def _remove_at(root: int, parent: int, name: str, *, is_directory: bool) -> None:
    """A directory below is moved to the root first: no path is too long then, and two descriptors are enough."""
    if not is_directory:
        os.unlink(name, dir_fd=parent)
        return
    if parent != root:
        os.rename(name, f".{secrets.token_hex(8)}", src_dir_fd=parent, dst_dir_fd=root)
        return
    directory = os.open(name, _WALK, dir_fd=root)
    try:
        while some := _some_entries(directory):
            for inner, is_inner_directory in some:
                _remove_at(root, directory, inner, is_directory=is_inner_directory)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=root)


def _some_entries(directory: int) -> list[tuple[str, bool]]:
    """Not all: a guest may have made any number. Name, and whether it is a directory."""
    with os.scandir(directory) as entries:
        return [
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in itertools.islice(entries, _ENTRIES_AT_ONCE)
        ]
