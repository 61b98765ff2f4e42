# SPDX-License-Identifier: Apache-2.0
"""What gRPC and the agent say when something fails, in our own words."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import NoReturn

import grpc

from hyperd.errors import (
    DeniedError,
    ExhaustedError,
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)

_MEANING: dict[grpc.StatusCode, type[HyperError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: WrongStateError,
    grpc.StatusCode.ABORTED: WrongStateError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExhaustedError,
    grpc.StatusCode.PERMISSION_DENIED: DeniedError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
}
MAX_TEXT = 1000
# grpc.aio's own status when a write crosses the end of a call: https://github.com/grpc/grpc/issues/36066
_CROSSED = "Internal error from Core"


class CallOverError(UnavailableError):
    """The agent ended the call while we were writing; what it said, if anything, is lost."""


class NonsenseError(Exception):
    """The agent's answer breaks the protocol; it is not to be believed any further."""


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """A guest's words, fit for a log or a terminal."""
    shown = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "..."


def lost(subject: str, evidence: str = "") -> UnavailableError:
    return UnavailableError("the connection to the agent is lost", subject=subject, evidence=evidence)


@contextlib.contextmanager
def agent_errors(subject: str) -> Iterator[None]:
    """Translate what a call raises; the original stays as ``__cause__``."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        _raise_translated(error, subject)
    except NonsenseError as error:
        raise UnavailableError(
            "the agent's answer makes no sense", subject=subject, evidence=str(error)
        ) from error
    except (
        grpc.aio.UsageError,
        asyncio.InvalidStateError,
    ) as error:  # the call or the channel is over already
        raise lost(subject, str(error)) from error
    except asyncio.CancelledError as error:
        # grpc.aio raises this also when not we but the call was cancelled: by the agent, or by close().
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise lost(subject, "the call was cancelled") from error


def _raise_translated(error: grpc.aio.AioRpcError, subject: str) -> NoReturn:
    code, said = error.code(), printable(error.details() or "")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise TimeoutExpiredError("the agent did not answer in time", subject=subject) from error
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        raise lost(subject, said) from error
    if code is grpc.StatusCode.INTERNAL and said == _CROSSED:
        raise CallOverError("the call to the agent is over", subject=subject) from error
    kind = _MEANING.get(code)
    if kind is None:
        raise HyperError("the agent failed", subject=subject, evidence=f"{code.name}: {said}") from error
    raise kind(said or f"the agent answered {code.name}", subject=subject) from error
