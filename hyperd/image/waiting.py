# SPDX-License-Identifier: Apache-2.0
"""Data from somebody who may stop sending."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from hyperd.errors import TimeoutExpiredError


async def waiting(data: AsyncIterator[bytes], stall_timeout_s: float) -> AsyncGenerator[bytes, None]:
    """The chunks, each within the time, else TimeoutExpiredError; ``data`` is closed at the end."""
    try:
        while True:
            try:
                async with asyncio.timeout(stall_timeout_s):
                    chunk = await anext(data, None)
            except TimeoutError as error:
                raise TimeoutExpiredError(
                    f"nothing has come for {stall_timeout_s:g} s", subject="data"
                ) from error
            if chunk is None:
                return
            yield chunk
    finally:
        if isinstance(data, AsyncGenerator):
            await data.aclose()
