# SPDX-License-Identifier: Apache-2.0
"""News for whoever waits at this moment; nobody waiting, nothing kept."""

import asyncio


class Pulse:
    """Look at the state, then ``wait``: without an await between the two no beat is missed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self) -> None:
        await self._event.wait()
