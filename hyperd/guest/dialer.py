# SPDX-License-Identifier: Apache-2.0
"""``AgentDialer``: from two of QEMU's sockets to a guest that has said hello."""

import asyncio
import contextlib
from pathlib import Path

from hyperd.errors import TimeoutExpiredError
from hyperd.guest.client import AgentGuest, exchange_hellos
from hyperd.guest.transport import open_port


class AgentDialer:
    """Opens both ports side by side; asks nothing twice, since QEMU keeps the opening until the guest is up."""

    async def connect(
        self, control_socket: Path, stream_socket: Path, *, timeout_s: float, subject: str
    ) -> AgentGuest:
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout_s):
                    control = await stack.enter_async_context(
                        open_port(control_socket, timeout_s=timeout_s, subject=subject)
                    )
                    stream = await stack.enter_async_context(
                        open_port(stream_socket, timeout_s=timeout_s, subject=subject)
                    )
                    await control.wait_open(subject)
                    await stream.wait_open(subject)
                    hello = await exchange_hellos((control, stream), timeout_s=timeout_s, subject=subject)
            except TimeoutError as error:
                raise TimeoutExpiredError(
                    f"no agent answered within {timeout_s:g} s",
                    subject=subject,
                    hint="the guest's console log says how far it came",
                ) from error
            return AgentGuest(control, stream, hello, subject=subject, resources=stack.pop_all())
