# SPDX-License-Identifier: Apache-2.0
"""A snapshot as a tar stream, in one form and no other: what is equal gives equal streams, and nothing else is read.

    manifest.json                the canonical manifest, first
    ram/000000000000             bytes of the file "ram" at this offset (hexadecimal), at most 64 KiB;
    ram/000000003000 ...         pages of 4 KiB that are all zeros are left out; files in the manifest's order
    two blocks of zeros          the end; nothing follows

Headers are USTAR with mode 0440, no owner, no time. Both sides hold about a mebibyte. Everything here blocks.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator

from hyperd.errors import InvalidError, WrongStateError
from hyperd.host import files, members
from hyperd.host.members import END, RECORD_BYTES
from hyperd.model.snapshot import Manifest, Snapshot
from hyperd.snapshot import digest
from hyperd.snapshot import manifest as manifests
from hyperd.snapshot.draft import LocalDraft
from hyperd.snapshot.manifest import MANIFEST_NAME

CHUNK_BYTES = 1 << 20
PAGE_BYTES = 4096
_NO_PAGE = bytes(PAGE_BYTES)
_MEMBER = re.compile(r"([a-z][a-z0-9_-]{0,31})/([0-9a-f]{12})")


class ArchiveWriter:
    """Once opened it holds the files: a snapshot that is removed meanwhile is still written to its end."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._lock = threading.Lock()
        self._snapshot = snapshot
        self._manifest = snapshot.manifest
        self._descriptors: list[int] = []
        self._chunks = self._packed()
        self._closed = False

    def open(self) -> None:
        with self._lock, files.file_errors(self._snapshot.directory):
            for file in () if self._closed else self._manifest.files:
                self._descriptors.append(digest.open_regular(self._snapshot.path(file.name)))

    def read(self) -> bytes | None:
        """At most CHUNK_BYTES; b"": nothing but zeros so far; None: the end."""
        with self._lock, files.file_errors(self._snapshot.directory):
            return None if self._closed else next(self._chunks, None)

    def close(self) -> None:
        """Waits for a call in another thread. None does anything afterwards."""
        with self._lock:
            self._closed = True
            while self._descriptors:
                os.close(self._descriptors.pop())

    def _packed(self) -> Iterator[bytes]:
        waiting = bytearray()
        for piece in self._pieces():
            if not piece:
                yield b""
            if len(waiting) + len(piece) > CHUNK_BYTES:
                yield bytes(waiting)
                waiting.clear()
            waiting += piece
        yield bytes(waiting)

    def _pieces(self) -> Iterator[bytes]:
        text = manifests.encode(self._manifest)
        for start in range(0, len(member := members.member(MANIFEST_NAME, text)), CHUNK_BYTES):
            yield member[start : start + CHUNK_BYTES]
        for file, descriptor in zip(self._manifest.files, self._descriptors, strict=True):
            for offset, block in files.data_blocks(descriptor, file.size_bytes, digest.BLOCK_BYTES):
                if not block:
                    yield b""
                for start, run in _runs(block):
                    yield members.member(f"{file.name}/{offset + start:012x}", run)
        yield END


class ArchiveReader:
    """Fills a draft from a stream in pieces of any size. The stream is hostile: InvalidError at its first wrong byte.

    ``accept`` is called once with the manifest, before anything is made; what it raises passes through.
    """

    def __init__(
        self, draft: LocalDraft, accept: Callable[[Manifest], None], *, keep_free_bytes: int
    ) -> None:
        self.manifest: Manifest | None = None
        self._draft = draft
        self._accept = accept
        self._keep_free_bytes = keep_free_bytes
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._descriptors: list[int] = []
        self._sizes: dict[str, tuple[int, int]] = {}  # name: position, size
        self._done = (0, 0)  # position of the file, offset up to which it was written
        self._ended = self._closed = False

    def feed(self, data: bytes) -> None:
        with self._lock, files.file_errors(self._draft.directory):
            if self._closed:
                raise WrongStateError("the reader was closed", subject=self._draft.snapshot_id)
            directory, keep = self._draft.directory, self._keep_free_bytes
            files.require_free(directory, len(data), keep_bytes=keep, what="an imported snapshot")
            self._buffer += data
            taken = 0
            while (length := self._next(taken)) is not None:
                taken += length
            del self._buffer[:taken]

    def finish(self) -> Manifest:
        with self._lock:
            if not self._ended or self._buffer or self.manifest is None:
                raise InvalidError("the stream ends before the snapshot does")
            return self.manifest

    def close(self) -> None:
        """Waits for a call in another thread. None does anything afterwards."""
        with self._lock:
            self._closed = True
            while self._descriptors:
                os.close(self._descriptors.pop())

    def _next(self, start: int) -> int | None:
        """Take what is whole at ``start``; its length, or None for more data first."""
        available = len(self._buffer) - start
        if self._ended:
            if available:
                raise InvalidError("the stream goes on after the snapshot's end")
            return None
        if available < RECORD_BYTES:
            return None
        header = bytes(self._buffer[start : start + RECORD_BYTES])
        if header[0] == 0:
            return self._take_end(start, available)
        name, size = self._parse_header(header)
        padded = -(-size // RECORD_BYTES) * RECORD_BYTES
        if available < RECORD_BYTES + padded:
            return None
        begin = start + RECORD_BYTES
        if any(self._buffer[begin + size : begin + padded]):
            raise InvalidError("the stream has data where padding belongs", subject=name)
        self._take_member(name, bytes(self._buffer[begin : begin + size]))
        return RECORD_BYTES + padded

    def _parse_header(self, header: bytes) -> tuple[str, int]:
        name, size = members.told_by(header)
        known = name == MANIFEST_NAME if self.manifest is None else _MEMBER.fullmatch(name) is not None
        limit = manifests.MAX_BYTES if self.manifest is None else digest.BLOCK_BYTES
        if not known or not 1 <= size <= limit or header != members.header(name, size):
            raise InvalidError("this is not a snapshot's stream: no such member", subject=repr(name)[:140])
        return name, size

    def _take_member(self, name: str, data: bytes) -> None:
        if self.manifest is None:
            manifest = manifests.decode(data)
            self._accept(manifest)
            for position, file in enumerate(manifest.files):
                path = self._draft.create(file.name, file.size_bytes, None)
                self._descriptors.append(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
                self._sizes[file.name] = (position, file.size_bytes)
            self.manifest = manifest
            return
        file_name, _, digits = name.partition("/")
        offset = int(digits, 16)
        position, size_bytes = self._sizes.get(file_name, (-1, 0))
        if (position, offset) < self._done or offset % PAGE_BYTES or offset + len(data) > size_bytes:
            raise InvalidError("a part of a file is out of place", subject=name)
        files.write_at(self._descriptors[position], data, offset)
        self._done = (position, offset + len(data))

    def _take_end(self, start: int, available: int) -> int | None:
        if available < len(END):
            return None
        if self.manifest is None or self._buffer[start : start + len(END)] != END:
            raise InvalidError("this is not a snapshot's stream: no such end")
        self._ended = True
        return len(END)


def _runs(block: bytes) -> Iterator[tuple[int, bytes]]:
    """(start, bytes) of what lies between pages of zeros."""
    begin = None
    for start in range(0, len(block), PAGE_BYTES):
        page = block[start : start + PAGE_BYTES]
        is_zero = page == (_NO_PAGE if len(page) == PAGE_BYTES else bytes(len(page)))
        if is_zero and begin is not None:
            yield begin, block[begin:start]
            begin = None
        elif not is_zero and begin is None:
            begin = start
    if begin is not None:
        yield begin, block[begin:]
