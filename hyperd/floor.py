# SPDX-License-Identifier: Apache-2.0
"""What stands below all rooms: the directories of this daemon and the lock on them, the records, threads for files."""

import contextlib
from dataclasses import dataclass

from hyperd.config import Config
from hyperd.errors import UnavailableError
from hyperd.host.database import Database
from hyperd.host.lock import FileLock
from hyperd.host.workers import Workers


@dataclass(frozen=True, slots=True)
class Floor:
    database: Database
    files: Workers


async def open_floor(config: Config, stack: contextlib.AsyncExitStack) -> Floor:
    """``stack`` closes it. Raises WrongStateError when another daemon has this state, UnavailableError."""
    state_dir, run_dir = config.daemon.state_dir, config.daemon.run_dir
    for directory in (state_dir, run_dir, state_dir / "sandboxes", run_dir / "vm"):
        try:
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"cannot be made: {error.strerror}", subject=str(directory), hint="hyperd runs as root"
            ) from error
    lock = FileLock(state_dir / "hyperd.lock")
    lock.acquire()
    stack.callback(lock.release)
    files = Workers("files", 4)
    stack.callback(files.close)
    database = Database(state_dir / "records.sqlite")
    await database.open()
    stack.push_async_callback(database.close)
    return Floor(database, files)
