# SPDX-License-Identifier: Apache-2.0
"""Which paths of the host may be shared with guests, and what is there. Blocks.

Links are followed here, as Docker follows them, and what they lead to is what has to be allowed. What the path is by
then is looked up without following any (``enclosure``): a link that somebody makes meanwhile leads nowhere.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from hyperd.errors import DeniedError, InvalidError, UnsupportedError
from hyperd.host.files import file_errors
from hyperd.model.share import Share, ShareRequest

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
        path = self._allowed_path(request)
        if path.exists():
            _is_file(path)
        elif not request.create_source:
            raise _missing(request)

    def find(self, request: ShareRequest) -> Share:
        """Raises InvalidError (nothing is there), UnsupportedError (a socket, a device), DeniedError."""
        path = self._allowed_path(request)
        if request.create_source and not path.exists():
            with file_errors(path):
                path.mkdir(mode=0o755, parents=True, exist_ok=True)
            path = self._allowed_path(request)  # somebody may have been there first
        if not path.exists():
            raise _missing(request)
        return Share(request, path, is_file=_is_file(path))

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


def _is_file(path: Path) -> bool:
    """Else it is a directory. Raises UnsupportedError for what is neither."""
    with file_errors(path):
        mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return stat.S_ISREG(mode)
    kind, hint = _KINDS.get(stat.S_IFMT(mode), ("neither a file nor a directory", ""))
    raise UnsupportedError(
        f"is {kind}: files and directories can be shared", subject=f"bind source {path}", hint=hint
    )


def _missing(request: ShareRequest) -> InvalidError:
    return InvalidError(
        f"bind source path does not exist: {request.source}",
        subject='invalid mount config for type "bind"',
        hint="make it; or `-v`, which makes a directory of that name",
    )
