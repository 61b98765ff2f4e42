# SPDX-License-Identifier: Apache-2.0
"""A guest's tar -> files below one directory of ours, and nowhere else.

Each entry is reached from the directory's own descriptor, part by part, and no symbolic link is ever followed on the
way, be it the archive's or one that was there. A file is written under a name of its own and renamed when it is whole.
Devices and FIFOs are left out and told of, and so are links that would lead out of the copy: whoever reads it, or
copies into it later, might follow them. Those come with ``archive``, as do owners and set-id bits where root asks.
"""

import collections
import contextlib
import errno
import os
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hyperctl.errors import CONFLICT, CliError, InvalidError
from hyperctl.tar_reader import FILES, BrokenTarError, Entry, read_entries

HELD_DIRECTORIES = 10_000  # whose modes and times wait for what is in them
MAX_TOLD = 10
SAFE_BITS = 0o777
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Left:
    """What was not written, and why: the first of it by name."""

    names: list[tuple[str, str]] = field(default_factory=list)
    count: int = 0

    def add(self, name: str, why: str) -> None:
        self.count += 1
        if len(self.names) < MAX_TOLD:
            self.names.append((name, why))


class Unpacker:
    """Puts entries into ``directory``; the archive's top entry becomes ``name`` ("." = its content goes in)."""

    def __init__(self, directory: Path, name: str, *, archive: bool = False) -> None:
        self._directory = directory
        self._base = [] if name == "." else [name]
        self._keep_links = archive
        self._keep_owner = archive and os.geteuid() == 0
        self._top: list[str] | None = None
        self._held: collections.deque[tuple[list[str], Entry]] = collections.deque()
        self.left = Left()
        self.written = 0

    def unpack(self, chunks: Iterator[bytes]) -> None:
        """Raises CliError, BrokenTarError. What was written whole before stays."""
        try:
            root = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidError(f"cannot be opened: {error.strerror}", subject=str(self._directory)) from error
        try:
            for entry in read_entries(chunks):
                parts = self._place(entry.name)
                try:
                    self._write(root, parts, entry)
                except OSError as error:
                    brief = f"cannot be written: {error.strerror or error}"
                    raise CliError(brief, subject=str(self._directory.joinpath(*parts))) from error
            self._finish_directories(root, 0)
        finally:
            os.close(root)

    def _place(self, name: str) -> list[str]:
        """Where an entry goes, as parts below the directory: its place below the top entry, whatever that is called."""
        parts = _parts(name)
        if self._top is None:
            self._top = parts[:1]
            if len(parts) > 1:
                raise BrokenTarError("its first entry is not the one that was asked for")
        if parts[: len(self._top)] != self._top:
            raise BrokenTarError(f"{name!r} is outside of what was asked for")
        return [*self._base, *parts[len(self._top) :]]

    def _write(self, root: int, parts: list[str], entry: Entry) -> None:
        if not parts:
            if entry.kind != tarfile.DIRTYPE:
                raise BrokenTarError("its top entry is no directory")
            return  # the directory is the user's, and stays as it is
        with self._parent(root, parts) as parent:
            name = parts[-1]
            if entry.kind == tarfile.DIRTYPE:
                if self._make_directory(parent, name):
                    self._held.append((parts, entry))
                    self._finish_directories(root, HELD_DIRECTORIES)
            elif entry.kind in FILES:
                self._replace(parent, name, lambda draft: self._write_file(parent, draft, entry))
            elif entry.kind == tarfile.SYMTYPE:
                self._make_symlink(parent, parts, entry)
            elif entry.kind == tarfile.LNKTYPE:
                self._make_hard_link(root, parent, parts, entry)
            else:
                self.left.add("/".join(parts), "a device or a FIFO")

    @contextlib.contextmanager
    def _parent(self, root: int, parts: list[str]) -> Iterator[int]:
        descriptor = os.dup(root)
        try:
            for part in parts[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=descriptor)
                below = os.open(part, DIRECTORY_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_directory(self, parent: int, name: str) -> bool:
        """Whether there was none: one that was is its user's, mode, owner and all."""
        self.written += 1
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise OSError(errno.EEXIST, "a file is in the place of a directory") from None
            return False
        return True

    def _replace(self, parent: int, name: str, write: Callable[[str], None]) -> None:
        """``write`` makes it under another name; then it replaces what is there, unless that is a directory."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise OSError(errno.EISDIR, "a directory is in the place of a file")
        draft = f".hyper-cp-{secrets.token_hex(8)}"
        try:
            write(draft)
            os.rename(draft, name, src_dir_fd=parent, dst_dir_fd=parent)
            self.written += 1
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=parent)
            raise

    def _write_file(self, parent: int, draft: str, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600, dir_fd=parent)
        try:
            for data in entry.data:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            self._dress(descriptor, entry)
        finally:
            os.close(descriptor)

    def _make_symlink(self, parent: int, parts: list[str], entry: Entry) -> None:
        target = entry.link_target
        if not target or not (self._keep_links or _stays_inside(parts[len(self._base) :], target)):
            self.left.add("/".join(parts), f"a link to {target}")
            return

        def write(draft: str) -> None:
            os.symlink(target, draft, dir_fd=parent)
            if self._keep_owner:
                os.chown(draft, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            with _times_that_fit():
                os.utime(draft, (entry.mtime_s, entry.mtime_s), dir_fd=parent, follow_symlinks=False)

        self._replace(parent, parts[-1], write)

    def _make_hard_link(self, root: int, parent: int, parts: list[str], entry: Entry) -> None:
        target = self._place(entry.link_target)
        if not target:
            raise BrokenTarError("a hard link to a directory")
        with self._parent(root, target) as there:
            about = os.stat(target[-1], dir_fd=there, follow_symlinks=False)
            if not stat.S_ISREG(about.st_mode):
                raise BrokenTarError("a hard link to something that is no file")
            self._replace(
                parent,
                parts[-1],
                lambda draft: os.link(
                    target[-1], draft, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False
                ),
            )

    def _finish_directories(self, root: int, keep: int) -> None:
        """The modes and times of all but the last ``keep``, the innermost first."""
        while len(self._held) > keep:
            parts, entry = self._held.pop() if not keep else self._held.popleft()
            with self._parent(root, parts) as parent:
                descriptor = os.open(parts[-1], DIRECTORY_FLAGS, dir_fd=parent)
                try:
                    self._dress(descriptor, entry)
                finally:
                    os.close(descriptor)

    def _dress(self, descriptor: int, entry: Entry) -> None:
        bits = SAFE_BITS
        if self._keep_owner:
            os.fchown(descriptor, entry.uid, entry.gid)  # first: it takes set-id bits away
            bits = 0o7777
        os.fchmod(descriptor, entry.mode & bits)
        with _times_that_fit():
            os.utime(descriptor, (entry.mtime_s, entry.mtime_s))


def _times_that_fit() -> contextlib.AbstractContextManager[None]:
    """A guest may have one that this host cannot write."""
    return contextlib.suppress(OverflowError, ValueError, OSError)


def tell_left(left: Left) -> str:
    """What the user has to know; "" when all was written."""
    lines = [f"  {name}: {why}" for name, why in left.names]
    if left.count > len(left.names):
        lines.append(f"  and {left.count - len(left.names)} more")
    return "\n".join(lines)


def require_written(unpacker: Unpacker, subject: str) -> None:
    """Raises CliError when the one path that was asked for is itself a link out, a device or a FIFO."""
    if unpacker.left.count and not unpacker.written:
        raise CliError(
            f"not copied: it is {unpacker.left.names[0][1]}",
            subject=subject,
            hint="-L copies what a link points to, -a the link",
            exit_status=CONFLICT,
        )


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise BrokenTarError(f"{name!r} leads out")
    return parts


def _stays_inside(parts: list[str], target: str) -> bool:
    """Whether a link at ``parts`` below the top leads nowhere but into the copy.

    `..` counts at the beginning alone: further on it would go up from wherever another link has led.
    """
    if target.startswith("/") or not target:
        return False
    steps = [step for step in target.split("/") if step not in {"", "."}]
    ups = next((index for index, step in enumerate(steps) if step != ".."), len(steps))
    return ".." not in steps[ups:] and ups <= max(0, len(parts) - 1)
