# SPDX-License-Identifier: Apache-2.0
"""Everything that hyper tells its callers when it fails.

    HyperError                    INTERNAL: a bug
    ├── InvalidError              the request itself is wrong; the same request will fail again
    │   ├── CommandNotFoundError       a shell's 127
    │   └── CommandNotExecutableError  a shell's 126
    ├── NotFoundError
    │   └── ImageNotFoundError    a caller pulls and tries again
    ├── ExistsError
    ├── WrongStateError           right request, wrong moment
    ├── ExhaustedError            memory, disk, addresses
    ├── TimeoutExpiredError
    ├── UnavailableError          a peer is gone: registry, QEMU, agent
    │   ├── ClockError            a guest's clock is not known to be right
    │   └── RestoreError          a saved VM cannot be restored: discard it, boot instead
    ├── DeniedError
    └── UnsupportedError

An error is what failed (``brief``), on what (``subject``), the evidence, and what to do (``hint``).
``api/status.py`` alone turns these into gRPC statuses.
"""

from typing import ClassVar


class HyperError(Exception):
    """Base of all errors that cross a room's door."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = ""
    bug_id: str = ""  # under which the log has it already

    def __init__(self, brief: str, *, subject: str = "", evidence: str = "", hint: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.subject = subject
        self.evidence = evidence
        self.hint = hint

    def __str__(self) -> str:
        parts = [f"{self.subject}: {self.brief}" if self.subject else self.brief]
        parts += [part for part in (self.evidence, self.hint) if part]
        return "\n".join(parts)


class InvalidError(HyperError):
    code = "INVALID_ARGUMENT"


class CommandNotFoundError(InvalidError):
    reason = "command-not-found"


class CommandNotExecutableError(InvalidError):
    reason = "command-not-executable"


class NotFoundError(HyperError):
    code = "NOT_FOUND"


class ImageNotFoundError(NotFoundError):
    reason = "image-not-found"


class ExistsError(HyperError):
    code = "ALREADY_EXISTS"


class WrongStateError(HyperError):
    code = "FAILED_PRECONDITION"


class ExhaustedError(HyperError):
    code = "RESOURCE_EXHAUSTED"


class TimeoutExpiredError(HyperError):
    code = "DEADLINE_EXCEEDED"


class UnavailableError(HyperError):
    code = "UNAVAILABLE"


class ClockError(UnavailableError):
    """A guest's clock was set, and is not known to be right."""


class RestoreError(UnavailableError):
    reason = "restore"


class DeniedError(HyperError):
    code = "PERMISSION_DENIED"


class UnsupportedError(HyperError):
    code = "UNIMPLEMENTED"
