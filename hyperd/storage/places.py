# SPDX-License-Identifier: Apache-2.0
"""Which paths of the host may be shared with guests, and what is there. Blocks.

Links are followed once, as Docker follows them, and what they lead to is what has to be allowed. From there on, here
and where it is served (``enclosure``), that path is looked up, and made, without following any: a link that somebody
makes meanwhile leads nowhere.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from hyperd.errors import DeniedError, InvalidError, UnsupportedError, WrongStateError
from hyperd.host.files import file_errors
from hyperd.model.share import Share, ShareRequest
from hyperd.storage.enclosure import open_without_links

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFSOCK: (
        "a socket",
        "it connects programs of one kernel, and a guest has its own: publish a port instead",
    ),
    stat.S_IFIFO: ("a pipe", "it connects programs of one kernel, and a guest has its own"),
    stat.S_IFCHR: ("a device", "a guest has devices of its own"),
    stat.S_IFBLK: ("a device", "a guest has devices of its own"),
}


class Places:
    def __init__(self, allowed: Sequence[Path], own: Sequence[Path]) -> None:
        """``allowed``: and what is below them; none: all. ``own``: hyperd's, never shared, nor what they are in."""
        self._allowed = [Path(os.path.realpath(path)) for path in allowed]
        self._own = [Path(os.path.realpath(path)) for path in own]

    def require_possible(self, request: ShareRequest) -> None:
        """As ``find``, but makes nothing."""
        if _look(self._allowed_path(request)) is None and not request.create_source:
            raise _missing(request)

    def find(self, request: ShareRequest) -> Share:
        """Raises InvalidError (nothing is there), UnsupportedError (a socket, a device), DeniedError.

        WrongStateError: there is a link by now.
        """
        path = self._allowed_path(request)
        is_file = _look(path)
        if is_file is None and request.create_source:
            _make(path)
            is_file = _look(path)
        if is_file is None:
            raise _missing(request)
        return Share(request, path, is_file=is_file)

    def _allowed_path(self, request: ShareRequest) -> Path:
        subject = f"bind source {request.source}"
        if not request.source.startswith("/") or "\0" in request.source:
            raise InvalidError("is not an absolute path", subject=repr(f"bind source {request.source}"[:200]))
        path = Path(os.path.realpath(request.source))
        leads_to = f", which is {path}" if str(path) != os.path.normpath(request.source) else ""
        if request.ours:
            return path
        if any(path.is_relative_to(own) or own.is_relative_to(path) for own in self._own):
            raise DeniedError(
                f"has files of hyperd's own in it{leads_to}",
                subject=subject,
                hint="share what is beside or below them; a container that changes them has the host",
            )
        if self._allowed and not any(path.is_relative_to(allowed) for allowed in self._allowed):
            raise DeniedError(
                f"may not be shared{leads_to}",
                subject=subject,
                hint=f"[storage] bind_allow names what may: {', '.join(map(str, self._allowed))}",
            )
        return path


def _look(path: Path) -> bool | None:
    """Whether it is a file, or else a directory; None: nothing is there. Raises UnsupportedError for neither."""
    with _meanwhile(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        place = open_without_links(os.fspath(path))
        try:
            mode = os.fstat(place).st_mode
        finally:
            os.close(place)
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return stat.S_ISREG(mode)
        kind, hint = _KINDS.get(stat.S_IFMT(mode), ("neither a file nor a directory", ""))
        raise UnsupportedError(
            f"is {kind}: files and directories can be shared", subject=f"bind source {path}", hint=hint
        )
    return None


def _make(path: Path) -> None:
    """A directory, and those above it, step by step: what is there is entered only if it is a directory itself."""
    with _meanwhile(path):
        place = os.open("/", _STEP)
        try:
            for name in path.parts[1:]:
                below = _enter(name, place)
                os.close(place)
                place = below
        finally:
            os.close(place)


def _enter(name: str, place: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, _STEP, dir_fd=place)
    with contextlib.suppress(FileExistsError):  # somebody may have been faster
        os.mkdir(name, 0o755, dir_fd=place)
    return os.open(name, _STEP, dir_fd=place)


@contextlib.contextmanager
def _meanwhile(path: Path) -> Iterator[None]:
    """What was looked up a moment ago leads elsewhere by now, or the host refuses."""
    with file_errors(path):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise WrongStateError(
                "cannot be entered: there is a link, or a file, in its way",
                subject=f"bind source {path}",
                hint="links are followed once, before it is looked at: try again when nobody changes it",
            ) from error


def _missing(request: ShareRequest) -> InvalidError:
    return InvalidError(
        f"bind source path does not exist: {request.source}",
        subject='invalid mount config for type "bind"',
        hint="make it; or `-v`, which makes a directory of that name",
    )
