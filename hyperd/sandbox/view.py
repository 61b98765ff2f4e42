# SPDX-License-Identifier: Apache-2.0
"""A container as shown to the outside. Pure."""

from dataclasses import replace
from pathlib import Path

from hyperd.errors import HyperError
from hyperd.model.container import ContainerRecord, ContainerView
from hyperd.sandbox import machine


def view_of(
    record: ContainerRecord,
    state: machine.State,
    generation: int,
    log_path: Path,
    trouble: HyperError | None = None,
) -> ContainerView:
    """``trouble``: why the agent of a VM that runs cannot be reached."""
    shown = ContainerView(
        record=record,
        state=machine.name_of(state),
        generation=generation,
        exit=machine.exit_of(state),
        log_path=str(log_path),
    )
    match state:
        case machine.Running(facts) | machine.Paused(facts) | machine.Stopping(facts):
            return replace(
                shown,
                started_at=facts.started_at,
                vm_pid=facts.vm_pid,
                guest_pid=facts.guest_pid,
                accelerator=facts.accelerator,
                guest_kernel=facts.guest_kernel,
                start_ms=facts.start_ms,
                start=facts.start,
                attachments=facts.attachments,
                trouble=str(trouble) if trouble is not None and not isinstance(state, machine.Paused) else "",
            )
        case machine.Hibernated(_, facts, since, _):
            return replace(
                shown,
                started_at=facts.started_at,
                finished_at=since,
                start=facts.start,
                attachments=facts.attachments,
            )
        case machine.Exited(_, started_at, finished_at, start) | machine.Failed(
            _, started_at, finished_at, start
        ):
            return replace(shown, started_at=started_at, finished_at=finished_at, start=start)
    return shown
