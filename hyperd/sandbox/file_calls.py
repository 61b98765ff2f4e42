# SPDX-License-Identifier: Apache-2.0
"""Who reads or writes a sandbox's files at this moment, and how they are broken off.

A call runs in its caller's task: a caller who hangs up ends it. What the driver does to the sandbox as a whole breaks
it off: then it fails with the reason that the driver gives, wherever it waits, also for its own client.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from hyperd.errors import HyperError, WrongStateError
from hyperd.sandbox.pulse import Pulse

GONE_TIMEOUT_S = 10.0  # for calls that were broken off, before what broke them off goes on without waiting


class FileCall:
    """``is_ending``: its files are read or written; what it needed for that is still being given back."""

    def __init__(self) -> None:
        self.is_ending = False
        self.reason: HyperError | None = None
        self.scope = asyncio.timeout(None)

    def break_off(self, reason: HyperError) -> None:
        if self.reason is None:
            self.reason, self.is_ending = reason, True
            self.scope.reschedule(asyncio.get_running_loop().time())


class FileCalls:
    def __init__(self, subject: str) -> None:
        self.turn = asyncio.Lock()  # of one that does not run: one after the other, each in a VM of its own
        self._subject = subject
        self._calls: set[FileCall] = set()
        self._changed = Pulse()

    @property
    def are_there(self) -> bool:
        return bool(self._calls)

    @property
    def are_under_way(self) -> bool:
        return any(not call.is_ending for call in self._calls)

    def require_none(self) -> None:
        """Raises WrongStateError."""
        if self.are_under_way:
            hint = "try again when that has ended"
            raise WrongStateError("its files are being read or written", subject=self._subject, hint=hint)

    @contextlib.asynccontextmanager
    async def call(self) -> AsyncIterator[FileCall]:
        """Raises, in the place of whatever comes of it, what it is broken off with."""
        call = FileCall()
        self._calls.add(call)
        try:
            async with call.scope:
                yield call
        except (TimeoutError, HyperError) as error:
            if call.reason is None:
                raise
            raise call.reason from error
        finally:
            self._calls.discard(call)
            self._changed.beat()

    def break_off(self, brief: str) -> None:
        for call in tuple(self._calls):
            call.break_off(WrongStateError(f"{brief} while its files were open", subject=self._subject))

    async def wait_gone(self, timeout_s: float | None = GONE_TIMEOUT_S) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._calls:
                    await self._changed.wait()
