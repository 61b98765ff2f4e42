# SPDX-License-Identifier: Apache-2.0
"""What tests ask of a container that lives and ends."""

import asyncio
from collections.abc import Awaitable
from signal import SIGTERM

from hyperd.errors import HyperError
from hyperd.model.container import ContainerState, Exit
from hyperd.model.guest import OutputChunk, Stream
from hyperd.sandbox import SandboxHandle
from tests.fakes.guest_process import Script

TERM_IGNORED = Script(ignored_signals=frozenset({SIGTERM}))


def state(handle: SandboxHandle) -> ContainerState:
    return handle.view().state


async def ended(handle: SandboxHandle) -> Exit:
    async with asyncio.timeout(5):
        return await handle.wait_ended()


async def all_of(session) -> tuple[bytes, bytes, Exit]:
    out, err, exit_ = b"", b"", None
    async with asyncio.timeout(5):
        async for item in session:
            if isinstance(item, OutputChunk):
                out += item.data if item.stream is Stream.STDOUT else b""
                err += item.data if item.stream is Stream.STDERR else b""
            else:
                exit_ = item
    assert exit_ is not None
    return out, err, exit_


async def error_of(work: Awaitable[object]) -> HyperError | None:
    try:
        await work
    except HyperError as error:
        return error
    return None
