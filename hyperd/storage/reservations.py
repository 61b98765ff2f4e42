# SPDX-License-Identifier: Apache-2.0
"""Which disks of servers are about to become volumes: nobody else formats them meanwhile."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence

from hyperd.errors import WrongStateError
from hyperd.host.database import Database
from hyperd.model.volume import VolumeRequest
from hyperd.storage import volume_records as records
from hyperd.storage.remote_rules import DRIVERS, parse


class Reservations:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._taken: set[str] = set()  # identities of disks

    @contextlib.asynccontextmanager
    async def holding(self, requests: Sequence[VolumeRequest]) -> AsyncIterator[None]:
        """Within, nobody else makes volumes of these servers' disks, which may be formatted.

        Raises ExistsError (a disk is a volume already), WrongStateError (it is about to become one).
        """
        wanted = [
            (request.name, parse(request.driver, request.options, f"volume {request.name}")[0])
            for request in requests
            if request.driver in DRIVERS
        ]

        def work(connection: sqlite3.Connection) -> None:
            for name, server in wanted:
                records.require_nobodys(connection, name, server)

        with contextlib.ExitStack() as reserved:
            for name, server in wanted:
                disks = server.identities
                if not self._taken.isdisjoint(disks):
                    raise WrongStateError(
                        f"{server} is being made a volume", subject=f"volume {name}", hint="try again"
                    )
                self._taken |= disks
                reserved.callback(self._taken.difference_update, disks)
            if wanted:
                await self._database.transaction(work)
            yield
