# SPDX-License-Identifier: Apache-2.0
"""`--cidfile`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hyperctl.errors import InvalidError


class CidFile:
    """A file that is claimed before the container exists and holds its id afterwards; "" is none."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self.written = False

    def write(self, container_id: str) -> None:
        if self._path is not None:
            self._path.write_text(container_id)
            self.written = True


@contextlib.contextmanager
def claim_cidfile(path: str) -> Iterator[CidFile]:
    """Raises InvalidError when the file exists: its container may still be wanted. Not written to, it goes again."""
    if path:
        try:
            Path(path).touch(exist_ok=False)
        except FileExistsError as error:
            raise InvalidError(
                "the file exists",
                subject=path,
                hint="make sure that its container is not wanted any more, then delete the file",
            ) from error
        except OSError as error:
            raise InvalidError(f"cannot be created: {error.strerror}", subject=path) from error
    cidfile = CidFile(path)
    try:
        yield cidfile
    finally:
        if path and not cidfile.written:
            Path(path).unlink(missing_ok=True)
