# SPDX-License-Identifier: Apache-2.0
"""The error edge: from HyperError to gRPC status and ErrorDetail, here and nowhere else."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from hyper.v1 import system_pb2
from hyperd.errors import HyperError

Context = grpc.aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)

DETAIL_KEY = "hyper-error-bin"
# gRPC's metadata has room for 8 KiB, in which the detail stands in base64 and the text percent-encoded.
_EVIDENCE_BYTES = 2500
_TEXT_BYTES = 500


@contextlib.asynccontextmanager
async def errors_as_status(context: Context) -> AsyncIterator[None]:
    """Wrap a servicer's body. A bug becomes INTERNAL with an id that also stands in the log."""
    try:
        yield
    except HyperError as error:
        detail = system_pb2.ErrorDetail(
            brief=_clipped(error.brief),
            subject=_clipped(error.subject),
            evidence=_tail(error.evidence),
            hint=_clipped(error.hint),
            reason=error.reason,
        )
        if error.code == HyperError.code:
            detail.bug_id = error.bug_id or _log_bug()
        await _abort(context, grpc.StatusCode[error.code], detail)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception:  # noqa: BLE001 - the border: nothing may leave unexplained
        bug_id = _log_bug()
        detail = system_pb2.ErrorDetail(
            brief="hyperd met a bug of its own",
            bug_id=bug_id,
            hint=f"the daemon's log has it under bug_id={bug_id}",
        )
        await _abort(context, grpc.StatusCode.INTERNAL, detail)


def _log_bug() -> str:
    bug_id = secrets.token_hex(4)
    log.exception("bug", extra={"bug_id": bug_id})
    return bug_id


async def _abort(context: Context, code: grpc.StatusCode, detail: system_pb2.ErrorDetail) -> None:
    text = f"{detail.subject}: {detail.brief}" if detail.subject else detail.brief
    trailing = ((DETAIL_KEY, detail.SerializeToString()),)
    await context.abort(code, _clipped(text), trailing)


def _clipped(text: str) -> str:
    encoded = text.encode(errors="replace")
    return (
        encoded.decode()
        if len(encoded) <= _TEXT_BYTES
        else encoded[:_TEXT_BYTES].decode(errors="ignore") + "..."
    )


def _tail(text: str) -> str:
    """The end of it: a console's and a log's last words say most."""
    return text.encode(errors="replace")[-_EVIDENCE_BYTES:].decode(errors="ignore")
