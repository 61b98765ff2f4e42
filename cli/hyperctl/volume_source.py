# SPDX-License-Identifier: Apache-2.0
"""What a volume is filled from, as a plain tar in pieces: a directory, a tar, an http(s) URL, a git repository."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hyperctl import pipes
from hyperctl.errors import DENIED, NOT_FOUND, UNAVAILABLE, CliError, InvalidError
from hyperctl.pack import pack
from hyperctl.packed import split_repository, unpacked
from hyperctl.pipes import CHUNK_BYTES, STANDARD

OPEN_TIMEOUT_S = 30.0  # of a server, for each answer
_HINT = "`zstd -dc FILE | hyper volume init NAME -`"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STATUS_OF_ANSWER = {401: DENIED, 403: DENIED, 404: NOT_FOUND, 410: NOT_FOUND}


@contextlib.contextmanager
def open_source(source: str, *, quiet: bool = False) -> Iterator[Iterator[bytes]]:
    """Raises CliError, also later, for what cannot be read."""
    if repository := split_repository(source):
        with _cloned(*repository, quiet=quiet) as directory:
            yield pack(str(directory), ".")
    elif source.startswith(("http://", "https://")):
        yield unpacked(_fetched(source), source, hint=_HINT)
    elif _URL.match(source):
        raise InvalidError(
            "nothing is known to fetch this with",
            subject=source,
            hint="a URL begins with http://, https://, git://, ssh:// or git+SCHEME://",
        )
    elif source == STANDARD:
        pipes.refuse_terminal_input("init", "a tar", hint="name a file, or redirect")
        place = "standard input"
        yield unpacked(_pieces(lambda: os.read(0, CHUNK_BYTES), place), place, hint=_HINT)
    elif Path(source).is_dir():
        yield pack(source, ".", follow=True)
    else:
        with pipes.open_input(source) as fd:
            yield unpacked(_pieces(lambda: os.read(fd, CHUNK_BYTES), source), source, hint=_HINT)


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
def _cloned(url: str, reference: str, *, quiet: bool) -> Iterator[Path]:
    from hyperctl import process

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
