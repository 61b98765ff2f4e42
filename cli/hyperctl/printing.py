# SPDX-License-Identifier: Apache-2.0
"""Printing in a thread of its own: who reads slowly, a pager for one, holds up nothing but what he reads."""

import collections
import threading
from collections.abc import Callable

MAX_BEHIND_BYTES = 64 << 20

Job = Callable[[], None]


class Printer:
    """``on_lost`` is called, in its thread, when nothing can be printed any more; ``finish`` raises why."""

    def __init__(self, on_lost: Callable[[], object]) -> None:
        self._on_lost = on_lost
        self._jobs: collections.deque[tuple[Job, int] | None] = collections.deque()
        self._behind_bytes = 0
        self._changed = threading.Condition()
        self.lost: OSError | ValueError | None = None
        self._thread = threading.Thread(target=self._run, name="printer", daemon=True)
        self._thread.start()

    def put(self, job: Job, size_bytes: int = 100) -> None:
        """Waits only when it is 64 MiB behind. A printer that is lost takes everything, and prints nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._behind_bytes < MAX_BEHIND_BYTES)
            self._behind_bytes += size_bytes
            self._jobs.append((job, size_bytes))
            self._changed.notify_all()

    def finish(self) -> None:
        """Until all is printed. Raises OSError."""
        with self._changed:
            self._jobs.append(None)
            self._changed.notify_all()
        self._thread.join()
        if self.lost is not None:
            raise self.lost

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            job, size_bytes = taken
            if self.lost is None:
                try:
                    job()
                except (OSError, ValueError) as error:
                    self.lost = error
                    self._on_lost()
            with self._changed:
                self._behind_bytes -= size_bytes
                self._changed.notify_all()

    def _take(self) -> tuple[Job, int] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs)
            return self._jobs.popleft()
