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
_EVIDENCE_CHARS = 3000  # metadata has room for 8 KiB


@contextlib.asynccontextmanager
async def errors_as_status(context: Context) -> AsyncIterator[None]:
    """Wrap a servicer's body. A bug becomes INTERNAL with an id that also stands in the log."""
    try:
        yield
    except HyperError as error:
        detail = system_pb2.ErrorDetail(
            brief=error.brief,
            subject=error.subject,
            evidence=error.evidence[-_EVIDENCE_CHARS:],
            hint=error.hint,
            reason=error.reason,
        )
        await _abort(context, grpc.StatusCode[error.code], detail)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception:
        bug_id = secrets.token_hex(4)
        log.exception("bug", extra={"bug_id": bug_id})
        detail = system_pb2.ErrorDetail(
            brief="hyperd met a bug of its own",
            bug_id=bug_id,
            hint=f"the daemon's log has it under bug_id={bug_id}",
        )
        await _abort(context, grpc.StatusCode.INTERNAL, detail)


async def _abort(context: Context, code: grpc.StatusCode, detail: system_pb2.ErrorDetail) -> None:
    text = f"{detail.subject}: {detail.brief}" if detail.subject else detail.brief
    trailing = ((DETAIL_KEY, detail.SerializeToString()),)
    await context.abort(code, text[:_EVIDENCE_CHARS], trailing)
