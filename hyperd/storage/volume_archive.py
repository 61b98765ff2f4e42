# SPDX-License-Identifier: Apache-2.0
"""A volume's disk as a tar stream, in one form and no other: equal disks give equal streams, and nothing else is read.

    manifest.json                how large, which file system
    disk/000000000000            bytes of the disk at this offset (hexadecimal), at most 64 KiB; all others are zeros
    disk/000000030000 ...        ascending
    sha256                       of every byte of the stream before this member
    two blocks of zeros          the end; nothing follows

Headers are USTAR with mode 0440, no owner, no time. Both sides hold about a mebibyte. Everything here blocks.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import InvalidError
from hyperd.host import files, members
from hyperd.host.members import END, RECORD_BYTES
from hyperd.storage import volume_rules as rules
from hyperd.storage.volume_files import RESERVE_BYTES

CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 1 << 16
FORMAT = 1
MAX_MANIFEST_BYTES = 4096
_MANIFEST, _DIGEST = "manifest.json", "sha256"
_MEMBER = re.compile(r"disk/([0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class Manifest:
    size_bytes: int
    filesystem: str

    def encode(self) -> bytes:
        fields = {"filesystem": self.filesystem, "format": FORMAT, "size_bytes": self.size_bytes}
        return json.dumps(fields, sort_keys=True).encode()


def decode_manifest(text: bytes) -> Manifest:
    """Raises InvalidError."""
    try:
        fields = json.loads(text)
        manifest = Manifest(int(fields["size_bytes"]), str(fields["filesystem"]))
        known = fields["format"] == FORMAT and manifest.filesystem in rules.DISK_FILESYSTEMS
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidError("this is not a volume's stream: no such manifest") from error
    if not known or manifest.encode() != text:
        raise InvalidError("is of a form that this hyperd does not read", subject="the volume's stream")
    rules.require_size(manifest.size_bytes, "the volume in the stream", manifest.filesystem)
    if manifest.size_bytes != rules.whole_blocks(manifest.size_bytes):
        raise InvalidError(
            f"{manifest.size_bytes} bytes are no whole blocks", subject="the volume in the stream"
        )
    return manifest


def packed(descriptor: int, manifest: Manifest) -> Iterator[bytes]:
    """The stream, in pieces of about a mebibyte; b"": nothing but zeros so far."""
    digest = hashlib.sha256()
    waiting = bytearray()
    for member in _members(descriptor, manifest):
        if not member:
            yield b""
        digest.update(member)
        waiting += member
        if len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting) + members.member(_DIGEST, digest.hexdigest().encode()) + END


def _members(descriptor: int, manifest: Manifest) -> Iterator[bytes]:
    yield members.member(_MANIFEST, manifest.encode())
    for offset, block in files.data_blocks(descriptor, manifest.size_bytes, BLOCK_BYTES):
        yield members.member(f"disk/{offset:012x}", block) if block else b""


class Unpacker:
    """Fills an empty file from a stream in pieces of any size. It is hostile: InvalidError at its first wrong byte."""

    def __init__(self, disk: Path) -> None:
        self.manifest: Manifest | None = None
        self._disk = disk
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._done = 0  # offset up to which the disk was written
        self._is_hashed = self._ended = False

    def feed(self, data: bytes) -> None:
        with files.file_errors(self._disk):
            files.require_free(
                self._disk.parent, len(data), keep_bytes=RESERVE_BYTES, what="an imported volume"
            )
            self._buffer += data
            taken = 0
            descriptor = os.open(self._disk, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                while (length := self._next(taken, descriptor)) is not None:
                    taken += length
            finally:
                os.close(descriptor)
            del self._buffer[:taken]

    def finish(self) -> Manifest:
        if not self._ended or self._buffer or self.manifest is None:
            raise InvalidError("the stream ends before the volume does")
        return self.manifest

    def _next(self, start: int, descriptor: int) -> int | None:
        """Take what is whole at ``start``; its length, or None for more data first."""
        available = len(self._buffer) - start
        if self._ended:
            if available:
                raise InvalidError("the stream goes on after the volume's end")
            return None
        if available < RECORD_BYTES:
            return None
        if self._is_hashed:
            return self._take_end(start, available)
        name, size = self._parse_header(bytes(self._buffer[start : start + RECORD_BYTES]))
        length = RECORD_BYTES + -(-size // RECORD_BYTES) * RECORD_BYTES
        if available < length:
            return None
        data = bytes(self._buffer[start + RECORD_BYTES : start + RECORD_BYTES + size])
        if any(self._buffer[start + RECORD_BYTES + size : start + length]):
            raise InvalidError("the stream has data where padding belongs", subject=name)
        self._take_member(name, data, descriptor)
        self._digest.update(self._buffer[start : start + length])
        return length

    def _parse_header(self, header: bytes) -> tuple[str, int]:
        name, size = members.told_by(header)
        if self.manifest is None:
            known, limit = name == _MANIFEST, MAX_MANIFEST_BYTES
        else:
            known, limit = name == _DIGEST or _MEMBER.fullmatch(name) is not None, BLOCK_BYTES
        if not known or not 1 <= size <= limit or header != members.header(name, size):
            raise InvalidError("this is not a volume's stream: no such member", subject=repr(name)[:140])
        return name, size

    def _take_member(self, name: str, data: bytes, descriptor: int) -> None:
        if self.manifest is None:
            self.manifest = decode_manifest(data)
            os.ftruncate(descriptor, self.manifest.size_bytes)
            return
        if name == _DIGEST:
            if data != self._digest.hexdigest().encode():
                raise InvalidError(
                    "was changed on its way: its digest is another", subject="the volume's stream"
                )
            self._is_hashed = True
            return
        offset = int(name.removeprefix("disk/"), 16)
        if offset < self._done or offset % BLOCK_BYTES or offset + len(data) > self.manifest.size_bytes:
            raise InvalidError("a part of the disk is out of place", subject=name)
        files.write_at(descriptor, data, offset)
        self._done = offset + len(data)

    def _take_end(self, start: int, available: int) -> int | None:
        if available < len(END):
            return None
        if self._buffer[start : start + len(END)] != END:
            raise InvalidError("this is not a volume's stream: no such end")
        self._ended = True
        return len(END)
