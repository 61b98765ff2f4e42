# SPDX-License-Identifier: Apache-2.0
"""How a session ended, and the exit status and message that this is to the user."""

from dataclasses import dataclass

from hyper.v1 import container_pb2 as pb
from hyperctl.errors import HYPER_FAILED, CliError
from hyperctl.render import print_error

REASONS = {
    pb.EXIT_REASON_OOM: "killed: the machine ran out of memory",
    pb.EXIT_REASON_GUEST_PANIC: "the guest kernel panicked",
    pb.EXIT_REASON_VM_LOST: "the virtual machine was killed from outside or crashed",
    pb.EXIT_REASON_START_FAILED: "the process could not be started",
    pb.EXIT_REASON_AGENT_LOST: "the agent in the guest stopped answering",
    pb.EXIT_REASON_CARRIER_ENDED: "the container whose network it had has ended",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: with the process, by the detach keys, by a signal to us, or (all unset) the call just closed."""

    exit: pb.ExitStatus | None = None
    detached: bool = False
    signal: int = 0


def exit_status(outcome: Outcome, *, subject: str) -> int:
    """The process's own status; 125 when there is none. What went wrong with its machine is told."""
    if outcome.signal:
        return 128 + outcome.signal
    if outcome.detached:
        return 0
    if outcome.exit is None:
        raise CliError(
            "the daemon ended the session before the process ended",
            subject=subject,
            hint="`hyper ps -a` shows what became of it",
            exit_status=HYPER_FAILED,
        )
    brief = REASONS.get(outcome.exit.reason)
    if brief is not None:
        evidence = outcome.exit.message
        print_error(CliError(brief, subject=subject, evidence=evidence))
        return outcome.exit.code or HYPER_FAILED
    return outcome.exit.code
