# SPDX-License-Identifier: Apache-2.0
"""Request streams of bytes, bounded, read no faster than they are used."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from google.protobuf.message import Message

from hyperd.api.status import Context
from hyperd.errors import InvalidError, TimeoutExpiredError, UnavailableError

T = TypeVar("T")

MAX_DATA_BYTES = 1 << 20  # of one message, in both directions
LISTENS_TIMEOUT_S = 180.0


async def tell(context: Context, response: Message, what: str) -> None:
    """For one who has a place while he is told of it: one who does not listen gives it back.

    Raises TimeoutExpiredError.
    """
    try:
        async with asyncio.timeout(LISTENS_TIMEOUT_S):
            await context.write(response)
    except TimeoutError as error:
        raise TimeoutExpiredError(
            f"nobody has read what it tells for {LISTENS_TIMEOUT_S:g} s", subject=what
        ) from error


async def first_request(requests: AsyncIterator[T], what: str) -> T:
    """Raises InvalidError when there is none."""
    first = await anext(aiter(requests), None)
    if first is None:
        raise InvalidError(f"no {what} was sent")
    return first


async def received(
    requests: AsyncIterator[T],
    data_of: Callable[[T], bytes],
    first: bytes = b"",
    is_end: Callable[[T], bool] | None = None,
) -> AsyncIterator[bytes]:
    """``first``, then each message's data. The next is asked for when this one was taken, so gRPC holds the sender up.

    ``is_end``: of the last message, for data that does not say itself where it ends. To grpc.aio a caller who hangs up
    and one who has sent all look the same, until the call is cancelled a moment later.
    Raises InvalidError for a message that is too large, UnavailableError when the last one has not come.
    """
    if first:
        yield _bounded(first)
    # Not `async for`: grpc.aio iterates a request stream of ours by anext() only.
    while (request := await anext(aiter(requests), None)) is not None:
        data = _bounded(data_of(request))
        if data:
            yield data
        if is_end is not None and is_end(request):
            return
    if is_end is not None:
        raise UnavailableError("the sender has hung up before the end")


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_DATA_BYTES:
        raise InvalidError(f"a message holds more than {MAX_DATA_BYTES} bytes")
    return data


def pieces(data: bytes) -> list[bytes]:
    """As messages may carry them."""
    return [data[at : at + MAX_DATA_BYTES] for at in range(0, len(data), MAX_DATA_BYTES)]
