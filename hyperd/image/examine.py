# SPDX-License-Identifier: Apache-2.0
"""Which entry of a layer's tar makes no file system, and why: mkfs.erofs tells an error's number and no name.

Read again from the start, when it has failed. A stranger's tar: bounded in what is kept, nothing is unpacked.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hyperd.errors import UnsupportedError
from hyperd.image.framing import BLOCK, MAX_PAX_BYTES, number_in
from hyperd.image.pax import read_records
from hyperd.image.stream import BROKEN, open_layer

MAX_PATH_BYTES = 4096
MAX_WORK_BYTES = 1 << 30  # of names, each as often as it has parts: some seconds
MAX_NAMES = 1 << 20  # that are kept
MAX_NAME_BYTES = 255  # of one component
MAX_XATTR_BYTES = 4000  # of one entry, names and values: they stand in one block with its inode
MAX_SHOWN = 200
_UNREADABLE: tuple[type[Exception], ...] = (*BROKEN, OSError, UnsupportedError)
_CHUNK_BYTES = 1 << 20
_XATTR = b"SCHILY.xattr."
_NUMBERS = {
    **dict.fromkeys((b"uid", b"gid", b"size"), re.compile(rb"\d{1,19}")),
    **dict.fromkeys((b"mtime", b"atime", b"ctime"), re.compile(rb"-?\d{1,19}(\.\d*)?")),
}
_DIRECTORY, _OTHER = "a directory", "something that is no directory"
_KINDS = {
    b"0": "a file",
    b"\0": "a file",
    b"7": "a file",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": _DIRECTORY,
    b"6": "a named pipe",
}


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    kind: bytes
    link: str
    pax: Mapping[bytes, bytes]


def fault_in(blob: Path) -> str:
    """Of a layer's blob, whole or cut off, packed or plain. "" when nothing is found. Blocks."""
    try:
        with blob.open("rb") as compressed, open_layer(compressed, blob.name) as tar:
            return find_fault(tar)
    except _UNREADABLE:
        return ""


def find_fault(tar: BinaryIO) -> str:
    """Raises what ``tar`` raises; one that is cut off is read as far as it goes."""
    found: dict[str, str] = {}
    work = 0
    for entry in entries_of(tar):
        size = max(len(entry.name), len(entry.link))
        work += size * (1 + entry.name.count("/"))
        if size > MAX_PATH_BYTES or work > MAX_WORK_BYTES or len(found) > MAX_NAMES:
            return ""
        if why := _fault_alone(entry) or _fault_among(entry, found):
            return f"{_shown(entry.name)}: {why}"
    return ""


def _fault_alone(entry: Entry) -> str:
    for key, value in entry.pax.items():
        if key in _NUMBERS and not _NUMBERS[key].fullmatch(value):
            return f"its extended header says {_shown(key.decode())}={_shown(value.decode(errors='replace'))}"
    if (
        sum(len(key) + len(value) for key, value in entry.pax.items() if key.startswith(_XATTR))
        > MAX_XATTR_BYTES
    ):
        return f"its extended attributes are more than {MAX_XATTR_BYTES} bytes"
    path, link = _normal(entry.name), _normal(entry.link)
    for part in (*path.split("/"), *(link.split("/") if entry.kind == b"1" else ())):
        if len(part.encode(errors="surrogateescape")) > MAX_NAME_BYTES:
            return f"a name of more than {MAX_NAME_BYTES} bytes"
    return "" if path or entry.kind == b"5" else "the root can be nothing but a directory"


def _fault_among(entry: Entry, found: dict[str, str]) -> str:
    """``found``: what each path is that came before; this one joins them."""
    path, link = _normal(entry.name), _normal(entry.link)
    if not path:
        return ""
    parent, name = posixpath.split(path)
    for above in _parents(path):
        if (kind := found.setdefault(above, _DIRECTORY)) != _DIRECTORY:
            return f"it is below {_shown(above)}, which is {kind}"
    if name == ".wh..wh..opq":  # whatever kind of entry it is
        return ""
    if entry.kind == b"1":
        gone = any(found.get(above) != _DIRECTORY for above in _parents(link))
        if link not in found or gone or f"{link}/".startswith(f"{path}/"):
            return f"a hard link to {_shown(link)}, which does not stand before it"
        if found[link] == _DIRECTORY:
            return f"a hard link to {_shown(link)}, a directory"
    if name.startswith(".wh."):
        return _take_whiteout(parent, name.removeprefix(".wh."), found)
    found[path] = found[link] if entry.kind == b"1" else _KINDS.get(entry.kind, _OTHER)
    return ""


def _take_whiteout(parent: str, name: str, found: dict[str, str]) -> str:
    if name in (".", ".."):
        return "it removes a directory that it stands in"
    if name and not name.startswith(".wh."):
        found[posixpath.join(parent, name)] = "removed by this layer"
    return ""


def _parents(path: str) -> Iterator[str]:
    at = path.find("/")
    while at != -1:
        yield path[:at]
        at = path.find("/", at + 1)


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/").removeprefix("./") if name.strip("/") not in ("", ".") else ""


def _shown(text: str) -> str:
    printable = text.encode(errors="backslashreplace").decode()
    return printable if len(printable) <= MAX_SHOWN else f"{printable[:MAX_SHOWN]}..."


def entries_of(tar: BinaryIO) -> Iterator[Entry]:
    """To its end, or to where it makes no sense, which ``Framing`` tells of."""
    pax: dict[bytes, bytes] = {}
    names: dict[bytes, bytes] = {}
    while len(header := tar.read(BLOCK)) == BLOCK and header.strip(b"\0"):
        kind, size = header[156:157], number_in(header[124:136])
        if size is None:
            return
        if kind in b"xgLK":
            if size > MAX_PAX_BYTES:
                return
            data = tar.read(size)
            _skip(tar, -size % BLOCK)
            if kind == b"x":
                pax = dict(read_records(data).pairs)
            elif kind != b"g":
                names[kind] = data.partition(b"\0")[0]
            continue
        name = pax.get(b"path") or names.get(b"L") or _name_in(header)
        link = pax.get(b"linkpath") or names.get(b"K") or header[157:257].partition(b"\0")[0]
        yield Entry(_text(name), kind, _text(link), pax)
        if kind == b"S" and header[482]:
            while len(more := tar.read(BLOCK)) == BLOCK and more[504]:
                continue
        if kind not in b"123456":
            size = int(pax.get(b"size", size))
            _skip(tar, size + -size % BLOCK)
        pax, names = {}, {}


def _name_in(header: bytes) -> bytes:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if header[257:263] == b"ustar\0" and prefix else name


def _skip(tar: BinaryIO, count: int) -> None:
    while count > 0 and (data := tar.read(min(count, _CHUNK_BYTES))):
        count -= len(data)


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")
