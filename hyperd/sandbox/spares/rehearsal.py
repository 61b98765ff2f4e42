# SPDX-License-Identifier: Apache-2.0
"""A start walked through with nothing at stake, so that the next one meets no code for the first time.

    identity -> container -> start -> its output -> its end -> all of it undone

Under emulation a restored guest is slow because QEMU translates each block of its code at its first execution
(docs/templates.md). The calls are those of a start, made by the code that makes a start's; what is left out is what
nobody knows yet: the image.
"""

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import UnavailableError
from hyperd.guest.base import Guest
from hyperd.model.container import ContainerRecord, ContainerSpec, Sizing
from hyperd.model.guest import FIRST_PROCESS, ContainerPlan, WritableSource
from hyperd.model.image import ImageConfig, ImageId, RootDisk
from hyperd.model.network import Attachment
from hyperd.model.vm import SandboxId
from hyperd.sandbox import identity, plans
from hyperd.sandbox.definition import WRITABLE_SERIAL

DIRECTORY = (
    "rehearsal"  # on the writable disk, beside the one that a container gets; it goes with the rehearsal
)
# In every container, whatever its image: the agent's own binary. It says how it is used, and ends.
PROGRAM = ("/run/hyper/forkpoint", "--help")


async def rehearse(
    guest: Guest, sandbox_id: SandboxId, sizing: Sizing, attachments: tuple[Attachment, ...], entropy: bytes
) -> None:
    """Raises what the calls raise; UnavailableError when the trial's process does not run as it should."""
    record = trial(sandbox_id, sizing, is_alone=not attachments)
    plan = plan_of(record)
    await guest.configure(identity.identity_of(record, attachments, entropy, uuid.uuid4()))
    await guest.create_container(plan)
    refused = await guest.start_container(plan.container_id)
    if refused is None:
        reader = guest.read_output(plan.container_id, FIRST_PROCESS, 0)
        async for chunk in reader:
            reader.acknowledge(chunk.end_offset)
    exit_ = refused or await guest.wait_process(plan.container_id, FIRST_PROCESS)
    if exit_.code:
        evidence = exit_.start_error or f"exit status {exit_.code}"
        raise UnavailableError("the rehearsal failed", subject=" ".join(PROGRAM), evidence=evidence)
    await guest.end_rehearsal(plan.container_id)


def trial(sandbox_id: SandboxId, sizing: Sizing, *, is_alone: bool) -> ContainerRecord:
    """What is never recorded: the container of a rehearsal."""
    spec = ContainerSpec(image="", network="none" if is_alone else "")
    return ContainerRecord(sandbox_id, DIRECTORY, spec, ImageId(""), PROGRAM, sizing, datetime.now(UTC))


def plan_of(record: ContainerRecord, layers: int = 0) -> ContainerPlan:
    """Beside the directory of a container to come, on the same disk."""
    plan = plans.container_plan(record, ImageConfig(), RootDisk(Path("/"), layers))
    return replace(plan, writable=WritableSource(WRITABLE_SERIAL, DIRECTORY))
