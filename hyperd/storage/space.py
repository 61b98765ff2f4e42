# SPDX-License-Identifier: Apache-2.0
"""Sparse files promise more than there is: whoever runs the host is told before they cannot grow any more."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from hyperd.host import files
from hyperd.host.workers import Workers

log = logging.getLogger(__name__)

LOW_BYTES = 1 << 30
ENOUGH_BYTES = LOW_BYTES + LOW_BYTES // 4  # so that it is not told again and again
EVERY_S = 30.0


class SpaceWatch:
    def __init__(
        self, directory: Path, workers: Workers, free_bytes: Callable[[Path], int] = files.free_bytes
    ) -> None:
        self._directory = directory
        self._workers = workers
        self._free_bytes = free_bytes
        self.is_low = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        try:
            free_bytes = await self._workers.call(self._free_bytes, self._directory)
        except OSError as error:
            log.warning("free space cannot be read", extra={"error": str(error)})
            return
        fields = {"path": str(self._directory), "free_mib": free_bytes >> 20}
        if free_bytes < LOW_BYTES and not self.is_low:
            self.is_low = True
            log.warning(
                "little space is left for disks and volumes: guests get I/O errors next", extra=fields
            )
        elif free_bytes >= ENOUGH_BYTES and self.is_low:
            self.is_low = False
            log.info("there is space again", extra=fields)
