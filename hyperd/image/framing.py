# SPDX-License-Identifier: Apache-2.0
"""Whether a stream is a tar from end to end, told by its headers alone.

    header --data, padding--> header ... zero block --> zero block --> over: what follows is not looked at

mkfs.erofs takes a block without a name for the end of the archive and is content. To Docker such a layer is
broken; so it is here, by the rules of Go's archive/tar, which Docker reads layers with.
"""

import re
import zlib
from collections.abc import Callable

from hyperd.image.pax import read_records

BLOCK = 512
MAX_PAX_BYTES = 1 << 20  # as in archive/tar
_ZERO = bytes(BLOCK)
_NO_DATA = frozenset(b"123456")  # links, devices, directories, fifos: whatever their size says
_ADLER = 65521
_SIZE = re.compile(rb"\d{1,19}")


class Framing:
    """Feed it the stream, then ``finish``; ``complaint`` says what is wrong, "" is nothing.

    Some microseconds a header, nothing a byte: the chunks are stepped over.
    """

    def __init__(self) -> None:
        self.complaint = ""
        self._offset = 0  # of what comes next
        self._skip = 0  # bytes that are not looked at, data and padding
        self._padding = 0  # of those the last ones, which the end of a stream may lack
        self._partial = bytearray()
        self._wanted = BLOCK  # bytes for the next step
        self._step: Callable[[bytes], None] | None = self._header
        self._next_size: int | None = None  # from a pax header
        self._after_map = 0  # a sparse file's data

    def feed(self, chunk: memoryview) -> None:
        at, end = 0, len(chunk)
        while self._step is not None and at < end:
            if self._skip:
                count = min(self._skip, end - at)
                self._skip -= count
            else:
                count = min(self._wanted - len(self._partial), end - at)
                self._partial += chunk[at : at + count]
            at += count
            self._offset += count
            if not self._skip and len(self._partial) == self._wanted:
                piece = bytes(self._partial)
                self._partial.clear()
                self._step(piece)

    @property
    def lacks_end(self) -> bool:
        """Of a stream without complaint that has ended: between two members, as Go and Docker allow."""
        return self._step is not None

    def finish(self) -> str:
        """The stream has ended. Returns the complaint."""
        between_members = self._step in (self._header, self._second_zero)
        if self._step is not None and (self._partial or self._skip > self._padding or not between_members):
            self._refuse("unexpected end of the archive", self._offset)
        return self.complaint

    def _header(self, block: bytes) -> None:
        if block == _ZERO:
            self._step = self._second_zero
            return
        start = self._offset - BLOCK
        size = number_in(block[124:136])
        if not _is_checksum_right(block) or size is None:
            self._refuse("invalid tar header", start)
            return
        kind = block[156]
        if kind in b"xg":
            if size > MAX_PAX_BYTES:
                self._refuse("a pax header that is too long", start)
                return
            self._wanted = size or BLOCK
            self._padding = -size % BLOCK
            if size:
                self._step = self._local_pax if kind == ord("x") else self._global_pax
            return
        if kind not in b"LK":  # a long name: the member itself is yet to come
            size, self._next_size = size if self._next_size is None else self._next_size, None
        if kind in _NO_DATA:
            size = 0
        self._pass(size)
        if kind == ord("S") and block[482]:
            # More of a GNU sparse file's map comes before its data.
            self._after_map = self._skip
            self._skip, self._step = 0, self._sparse_map

    def _sparse_map(self, block: bytes) -> None:
        if not block[504]:
            self._skip, self._step = self._after_map, self._header

    def _local_pax(self, data: bytes) -> None:
        for key, value in read_records(data).pairs:
            if key == b"size" and _SIZE.fullmatch(value):
                self._next_size = int(value)
        self._global_pax(data)

    def _global_pax(self, _: bytes) -> None:
        self._wanted, self._skip, self._step = BLOCK, self._padding, self._header

    def _second_zero(self, block: bytes) -> None:
        self._step = None
        if block != _ZERO:
            self._refuse("invalid tar header", self._offset - BLOCK)

    def _pass(self, size: int) -> None:
        self._padding = -size % BLOCK
        self._skip = size + self._padding

    def _refuse(self, what: str, offset: int) -> None:
        self._step = None
        self.complaint = f"{what} at byte {offset}"


def _is_checksum_right(block: bytes) -> bool:
    field = block[148:156]
    told = _octal(field)
    if told is None:
        return False
    # Adler-32's lower half is one more than the sum of the bytes, modulo 65521, at the speed of C.
    summed = (zlib.adler32(block) & 0xFFFF) - 1 - sum(field) + 8 * ord(" ")
    if (summed - told) % _ADLER == 0:
        return True
    others = block[:148] + block[156:]
    return told == sum(byte - 256 * (byte > 127) for byte in others) + 8 * ord(" ")  # old tars: signed


def number_in(field: bytes) -> int | None:
    """Octal, or base 256 where the first bit is set; None is neither, or negative."""
    if not field[0] & 0x80:
        return _octal(field)
    if field[0] & 0x40:
        return None
    number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return number if number < 1 << 63 else None


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:
        return None
