# SPDX-License-Identifier: Apache-2.0
"""An archive's members as files of our own naming, while it streams in.

A member's name is a key in a table and never a path on this host: nothing that an archive says decides where bytes go.
Names that point out of the archive make it invalid all the same, as they do for Docker.
"""

import hashlib
import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from hyperd.errors import ExhaustedError, InvalidError
from hyperd.host import files
from hyperd.host.workers import Wanted
from hyperd.image.content import hex_of
from hyperd.image.framing import BLOCK, MAX_PAX_BYTES, Framing
from hyperd.image.pax import read_records
from hyperd.image.stream import Limits
from hyperd.model.image import Digest

MAX_MEMBERS = 20_000
MAX_NAME_BYTES = 4096  # as PATH_MAX; also of a link's target
MAX_NAMES_BYTES = 16 << 20  # of all members and links together
MAX_LINKS = 10
MAX_DIGITS = 19  # of a size; int() itself gives up at 4300, with a bare ValueError
MAX_READ_BYTES = 64 << 20  # descriptions of all images together
MAGIC_BYTES = 6
_CHECK_EVERY_BYTES = 32 << 20
_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_LINKS = frozenset({tarfile.SYMTYPE, tarfile.LNKTYPE})
_NO_DATA = frozenset({*_LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE})
_PAX = {b"path", b"linkpath", b"size"}


@dataclass(frozen=True, slots=True)
class Entry:
    path: Path
    size_bytes: int
    digest: Digest
    magic: bytes


@dataclass(slots=True)
class Archive:
    """The table. ``links``: from name to name, both inside."""

    entries: dict[str, Entry] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    read_bytes: int = 0

    def find(self, name: str) -> Entry | None:
        name = posixpath.normpath(name) if name else ""
        for _ in range(MAX_LINKS):
            if name not in self.links:
                return self.entries.get(name)
            name = self.links[name]
        return None

    def get(self, name: object) -> Entry:
        """Raises InvalidError."""
        found = self.find(name) if isinstance(name, str) else None
        if found is None:
            raise InvalidError("the archive lacks something that it names", evidence=repr(name)[:200])
        return found

    def read(self, entry: Entry, limit: int) -> bytes:
        """Blocks. Raises InvalidError (too large)."""
        if entry.size_bytes > limit:
            raise InvalidError(f"a description in the archive is larger than {limit >> 20} MiB")
        self.read_bytes += entry.size_bytes
        if self.read_bytes > MAX_READ_BYTES:
            raise InvalidError(f"the archive's descriptions are larger than {MAX_READ_BYTES >> 20} MiB")
        with files.file_errors(entry.path):
            return entry.path.read_bytes()

    def blob(self, digest: Digest) -> Entry:
        """Of an OCI layout. Raises InvalidError when it is absent or something else."""
        entry = self.get(f"blobs/sha256/{hex_of(digest)}")
        if entry.digest != digest:
            raise InvalidError("a blob in the archive is not its digest", evidence=digest)
        return entry


class Splitter:
    """Feed it the tar, then ``finish``. Blocks."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.archive = Archive()
        self._directory = directory
        self._limits = limits
        self._framing = Framing()
        self._size = self._checked = self._members = self._names_bytes = 0
        self._collected = bytearray()
        self._wanted = BLOCK
        self._step: Callable[[bytes], None] = self._header
        self._skip = 0
        self._pax: dict[str, bytes] = {}
        self._is_over = False
        self._writing: _Writing | None = None

    def feed(self, wanted: Wanted, chunk: bytes) -> None:
        """Raises InvalidError, ExhaustedError."""
        wanted.require()
        self._framing.feed(memoryview(chunk))
        if self._framing.complaint:
            raise _no_archive(self._framing.complaint)
        self._size += len(chunk)
        if self._size - self._checked >= _CHECK_EVERY_BYTES:
            self._checked = self._size
            self._require_room()
        view = memoryview(chunk)
        while view and not self._is_over:
            view = view[self._take(view) :]

    def finish(self, _: Wanted) -> Archive:
        self._require_room()
        complaint = self._framing.finish() if self._size else "there are no bytes at all"
        if complaint or self._writing is not None:
            raise _no_archive(complaint or "unexpected end of the archive")
        return self.archive

    def close(self) -> None:
        if self._writing is not None:
            self._writing.file.close()

    def _take(self, view: memoryview) -> int:
        writing = self._writing
        if writing is not None:
            count = min(len(view), writing.left)
            with files.file_errors(writing.path):
                writing.write(view[:count])
            if not writing.left:
                self.archive.entries[writing.name] = writing.ended()
                self._writing = None
            return count
        if self._skip:
            count = min(len(view), self._skip)
            self._skip -= count
            return count
        count = min(len(view), self._wanted - len(self._collected))
        self._collected += view[:count]
        if len(self._collected) == self._wanted:
            piece = bytes(self._collected)
            self._collected.clear()
            self._wanted, step, self._step = BLOCK, self._step, self._header
            step(piece)
        return count

    def _header(self, block: bytes) -> None:
        if not block.strip(b"\0"):
            self._is_over = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise _no_archive(str(error)) from error
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise InvalidError(f"the archive has more than {MAX_MEMBERS} members")
        if info.size < 0:
            raise _no_archive("a member of no sensible size")
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            self._collect(info)
        elif info.type == tarfile.XGLTYPE:
            self._skip = _padded(info.size)
        else:
            self._member(info)

    def _collect(self, info: tarfile.TarInfo) -> None:
        if not 0 < info.size <= MAX_PAX_BYTES:
            raise _no_archive("a header of no sensible size")
        self._wanted = _padded(info.size)

        def keep(data: bytes) -> None:
            data = data[: info.size]
            if info.type == tarfile.XHDTYPE:
                for name, value in read_records(data).pairs:
                    if name in _PAX:
                        self._pax[name.decode()] = value if name == b"size" else _bounded(value)
            else:
                key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                self._pax[key] = _bounded(data.partition(b"\0")[0])

        self._step = keep

    def _member(self, info: tarfile.TarInfo) -> None:
        pax, self._pax = self._pax, {}
        name = self._name(_text(pax["path"]) if "path" in pax else info.name)
        size = _size_of(pax["size"]) if pax.get("size") else info.size
        if info.type in _NO_DATA:
            size = 0
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise _no_archive("a member of no sensible size")
        self._forget(name)
        if info.type in _LINKS:
            target = _text(pax["linkpath"]) if "linkpath" in pax else info.linkname
            at = posixpath.dirname(name) if info.type == tarfile.SYMTYPE else ""
            self.archive.links[name] = self._name(posixpath.join(at, target), "a link")
        elif info.type in _REGULAR:
            path = self._directory / f"{self._members}"
            with files.file_errors(path):
                self._writing = _Writing(name, path, size, path.open("xb", buffering=0))
            if not size:
                self.archive.entries[name] = self._writing.ended()
                self._writing = None
            self._skip = -size % BLOCK
        else:
            self._skip = _padded(size)

    def _name(self, name: str, what: str = "a member") -> str:
        """Normalised. Raises InvalidError for what leads out, and for more than is to be remembered."""
        name = _inside(name, what)
        size = len(_bounded(name.encode("utf-8", "surrogateescape")))
        self._names_bytes += size
        if self._names_bytes > MAX_NAMES_BYTES:
            raise InvalidError(f"the archive's names are larger than {MAX_NAMES_BYTES >> 20} MiB")
        return name

    def _forget(self, name: str) -> None:
        """The last member of a name counts, as when it is unpacked."""
        self.archive.links.pop(name, None)
        before = self.archive.entries.pop(name, None)
        if before is not None:
            before.path.unlink(missing_ok=True)

    def _require_room(self) -> None:
        if self._size > self._limits.max_bytes:
            raise ExhaustedError(f"the archive is larger than {self._limits.max_bytes >> 20} MiB")
        files.require_free(self._directory, 0, keep_bytes=self._limits.reserve_bytes, what="the archive")


class _Writing:
    """A member under way."""

    def __init__(self, name: str, path: Path, size: int, file: BinaryIO) -> None:
        self.name = name
        self.path = path
        self.file = file
        self.left = size
        self._size = size
        self._magic = b""
        self._hashed = hashlib.sha256()

    def write(self, view: memoryview) -> None:
        self.left -= len(view)
        self._hashed.update(view)
        if len(self._magic) < MAGIC_BYTES:
            self._magic = (self._magic + bytes(view[:MAGIC_BYTES]))[:MAGIC_BYTES]
        while view:
            view = view[self.file.write(view) :]

    def ended(self) -> Entry:
        self.file.close()
        return Entry(self.path, self._size, Digest(f"sha256:{self._hashed.hexdigest()}"), self._magic)


def _inside(name: str, what: str = "a member") -> str:
    """Normalised. Raises InvalidError for what leads out."""
    normal = posixpath.normpath(name)
    if (
        not name
        or name.startswith("/")
        or "\0" in name
        or normal.split("/")[0] == ".."
        or (what == "a member" and ".." in name.split("/"))
    ):
        raise InvalidError(f"{what} of the archive leads out of it", evidence=repr(name)[:200])
    return normal


def _bounded(value: bytes) -> bytes:
    if len(value) > MAX_NAME_BYTES:
        raise InvalidError(
            f"the archive has a name of more than {MAX_NAME_BYTES} bytes", evidence=repr(value[:100])
        )
    return value


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _size_of(value: bytes) -> int:
    if not value.isdigit() or len(value) > MAX_DIGITS:
        raise _no_archive("a member of no sensible size")
    return int(value)


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _no_archive(why: str) -> InvalidError:
    return InvalidError("this is not an image archive", evidence=why)
