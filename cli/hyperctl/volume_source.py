# SPDX-License-Identifier: Apache-2.0
"""What a volume is filled from, as a plain tar in pieces: a directory, a tar, an http(s) URL, a git repository."""

import contextlib
import io
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperctl import pipes
from hyperctl.errors import DENIED, NOT_FOUND, UNAVAILABLE, CliError, InvalidError
from hyperctl.pack import pack
from hyperctl.pipes import CHUNK_BYTES, STANDARD

MAGIC_BYTES = 6
OPEN_TIMEOUT_S = 30.0  # of a server, for each answer
_GIT = re.compile(r"git\+\w+://|(git|ssh)://|https?://[^#?]+\.git(#|$)|[\w.-]+@[\w.-]+:")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STATUS_OF_ANSWER = {401: DENIED, 403: DENIED, 404: NOT_FOUND, 410: NOT_FOUND}


@contextlib.contextmanager
def open_source(source: str, *, quiet: bool = False) -> Iterator[Iterator[bytes]]:
    """Raises CliError, also later, for what cannot be read."""
    if _GIT.match(source):
        with _cloned(source, quiet=quiet) as directory:
            yield pack(str(directory), ".")
    elif source.startswith(("http://", "https://")):
        yield _unpressed(_fetched(source), source)
    elif _URL.match(source):
        raise InvalidError(
            "nothing is known to fetch this with",
            subject=source,
            hint="a URL begins with http://, https://, git://, ssh:// or git+SCHEME://",
        )
    elif source == STANDARD:
        pipes.refuse_terminal_input("init", "a tar", hint="name a file, or redirect")
        yield _unpressed(_pieces(lambda: os.read(0, CHUNK_BYTES), "standard input"), "standard input")
    elif Path(source).is_dir():
        yield pack(source, ".", follow=True)
    else:
        with pipes.open_input(source) as fd:
            yield _unpressed(_pieces(lambda: os.read(fd, CHUNK_BYTES), source), source)


def _fetched(url: str) -> Iterator[bytes]:
    """No longer held than its server answers."""
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=OPEN_TIMEOUT_S) as answer:  # noqa: S310 - http and https only
            yield from _pieces(lambda: answer.read(CHUNK_BYTES), url)
            if answer.length:
                raise CliError(f"ended {answer.length} bytes too early", subject=url)
    except urllib.error.HTTPError as error:
        status = _STATUS_OF_ANSWER.get(error.code, UNAVAILABLE)
        raise CliError(
            f"the server answered {error.code} {error.reason}", subject=url, exit_status=status
        ) from error
    except urllib.error.URLError as error:
        raise CliError(f"cannot be fetched: {error.reason}", subject=url, exit_status=UNAVAILABLE) from error
    except (OSError, http.client.HTTPException) as error:  # it began to answer
        raise CliError(f"cannot be fetched: {error!r}", subject=url, exit_status=UNAVAILABLE) from error


@contextlib.contextmanager
def _cloned(source: str, *, quiet: bool) -> Iterator[Path]:
    from hyperctl import process

    url, _, reference = source.removeprefix("git+").partition("#")
    with tempfile.TemporaryDirectory(prefix="hyper-init-") as directory:
        target = Path(directory) / "tree"
        process.clone_repository(url, target, reference=reference, quiet=quiet)
        yield target


def _pieces(read: Callable[[], bytes], place: str) -> Iterator[bytes]:
    try:
        while data := read():
            yield data
    except OSError as error:
        raise CliError(f"cannot be read: {error.strerror or error}", subject=place) from error


def _unpressed(pieces: Iterator[bytes], place: str) -> Iterator[bytes]:
    """A tar that is packed by gzip, bzip2 or xz, or not at all."""
    import bz2
    import gzip
    import lzma

    raw = io.BufferedReader(_Stream(pieces), CHUNK_BYTES)
    first = raw.peek(MAGIC_BYTES)[:MAGIC_BYTES]
    if first.startswith(b"\x28\xb5\x2f\xfd"):
        raise InvalidError(
            "is packed by zstd", subject=place, hint="`zstd -dc FILE | hyper volume init NAME -`"
        )
    opened: io.BufferedIOBase = raw
    if first.startswith(b"\x1f\x8b"):
        opened = gzip.GzipFile(fileobj=raw)
    elif first.startswith(b"BZh"):
        opened = bz2.BZ2File(raw)
    elif first.startswith(b"\xfd7zXZ"):
        opened = lzma.LZMAFile(raw)  # noqa: SIM115 - ends with its pieces
    try:
        while data := opened.read(CHUNK_BYTES):
            yield data
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise CliError(f"cannot be unpacked: {error}", subject=place) from error


class _Stream(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
