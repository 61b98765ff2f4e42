# SPDX-License-Identifier: Apache-2.0
"""What `hyper` says when something fails, and with which exit status.

hyper: <subject>: <brief>
  <evidence>
hint: <what to do>
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc
    import grpc.aio

BUG, INVALID, NOT_FOUND, CONFLICT, EXHAUSTED, TIMEOUT, UNAVAILABLE, DENIED, UNSUPPORTED = range(1, 10)
HYPER_FAILED = 125  # of `run` and `exec`, whose other statuses belong to the process

EXIT_STATUS = {
    "INVALID_ARGUMENT": INVALID,
    "NOT_FOUND": NOT_FOUND,
    "ALREADY_EXISTS": CONFLICT,
    "FAILED_PRECONDITION": CONFLICT,
    "RESOURCE_EXHAUSTED": EXHAUSTED,
    "DEADLINE_EXCEEDED": TIMEOUT,
    "UNAVAILABLE": UNAVAILABLE,
    "PERMISSION_DENIED": DENIED,
    "UNIMPLEMENTED": UNSUPPORTED,
}
# A program that the container cannot execute is told as a shell does.
EXIT_STATUS_OF_REASON = {"command-not-executable": 126, "command-not-found": 127}
_LOGIN = re.compile(r"(\bhttps?://)[^/?#\s]*@")
DETAIL_KEY = "hyper-error-bin"


class CliError(Exception):
    """A failure that is told to the user and ends the command; ``reason`` is for code that branches."""

    def __init__(
        self,
        brief: str,
        *,
        subject: str = "",
        evidence: str = "",
        hint: str = "",
        reason: str = "",
        exit_status: int = BUG,
    ) -> None:
        super().__init__(brief)
        self.brief = brief
        self.subject = subject
        self.evidence = evidence
        self.hint = hint
        self.reason = reason
        self.exit_status = exit_status

    def __str__(self) -> str:
        return render_error(self.brief, subject=self.subject, evidence=self.evidence, hint=self.hint)


class InvalidError(CliError):
    """A flag or argument that cannot be meant."""

    def __init__(self, brief: str, *, subject: str = "", hint: str = "") -> None:
        super().__init__(brief, subject=subject, hint=hint, exit_status=INVALID)


def render_error(brief: str, *, subject: str = "", evidence: str = "", hint: str = "") -> str:
    lines = [": ".join(part for part in ("hyper", subject, brief) if part)]
    lines += [f"  {line}".rstrip() for line in evidence.strip("\n").splitlines()]
    if hint:
        lines.append(f"hint: {hint}")
    return hide_logins("\n".join(lines))


def hide_logins(text: str) -> str:
    """USER:PASSWORD@ of an address is for no screen and no log of a CI."""
    return _LOGIN.sub(r"\1***@", text)


def decode_status(error: "grpc.aio.AioRpcError | grpc.Call") -> CliError:
    """Turn a status of a call that hyperd answered into what the user sees."""
    from hyper.v1 import system_pb2

    detail = system_pb2.ErrorDetail(brief=error.details() or "the call failed")
    for key, value in error.trailing_metadata() or ():
        if key == DETAIL_KEY and isinstance(value, bytes):
            detail = system_pb2.ErrorDetail.FromString(value)
    code = error.code().name
    exit_status = EXIT_STATUS_OF_REASON.get(detail.reason) or EXIT_STATUS.get(code, BUG)
    if code == "CANCELLED":
        detail.brief = detail.brief or "the daemon cancelled the call"
    hint = detail.hint
    if detail.bug_id:
        hint = hint or f"this is a bug in hyper; hyperd's log has it under id {detail.bug_id}"
    return CliError(
        detail.brief or error.details() or code,
        subject=detail.subject,
        evidence=detail.evidence,
        hint=hint,
        reason=detail.reason,
        exit_status=exit_status,
    )
