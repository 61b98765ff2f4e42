# SPDX-License-Identifier: Apache-2.0
"""Pause, save and go on elsewhere: what every hypervisor promises."""

import dataclasses

import pytest

from hyperd.errors import ExhaustedError, NotFoundError, RestoreError
from hyperd.model.vm import MemoryFile, VmGoneCause
from tests.contract.vm.lab import new_id
from tests.contract.vm.subject import Subject


async def is_paused(subject: Subject) -> list[bool]:
    return [vm.paused for vm in await subject.hypervisor.list_running()]


async def test_pausing_and_resuming_may_be_repeated_and_is_listed(subject: Subject) -> None:
    definition = subject.lab.define()
    await subject.hypervisor.start(definition)
    for _ in range(2):
        await subject.hypervisor.pause(definition.sandbox_id)
        assert await is_paused(subject) == [True]
    for _ in range(2):
        await subject.hypervisor.resume(definition.sandbox_id)
        assert await is_paused(subject) == [False]
    await subject.hypervisor.destroy(definition.sandbox_id)


async def test_a_vm_that_is_not_there_cannot_be_paused_resumed_or_saved(subject: Subject) -> None:
    state = subject.lab.qemu_file("state")
    ended = subject.lab.define()
    await subject.hypervisor.start(ended)
    await subject.hypervisor.destroy(ended.sandbox_id)
    for sandbox_id in (new_id(), ended.sandbox_id):
        with pytest.raises(NotFoundError):
            await subject.hypervisor.pause(sandbox_id)
        with pytest.raises(NotFoundError):
            await subject.hypervisor.resume(sandbox_id)
        with pytest.raises(NotFoundError):
            await subject.hypervisor.save(sandbox_id, state)


async def test_a_paused_vm_can_be_destroyed(subject: Subject) -> None:
    definition = subject.lab.define()
    await subject.hypervisor.start(definition)
    await subject.hypervisor.pause(definition.sandbox_id)
    await subject.hypervisor.destroy(definition.sandbox_id)
    assert await subject.hypervisor.list_running() == []
    event = await anext(aiter(subject.hypervisor.events()))
    assert (event.sandbox_id, event.cause) == (definition.sandbox_id, VmGoneCause.DESTROYED)


@pytest.mark.parametrize("shared", [True, False])
async def test_a_saved_vm_is_paused_can_be_resumed_and_saved_again(subject: Subject, shared: bool) -> None:
    source = subject.lab.define_source(shared=shared)
    await subject.hypervisor.start(source)
    for name in ("one", "two"):
        state = subject.lab.qemu_file(name)
        await subject.hypervisor.save(source.sandbox_id, state)
        assert state.stat().st_size > 0
        assert await is_paused(subject) == [True]
        await subject.hypervisor.resume(source.sandbox_id)
        assert await is_paused(subject) == [False]
    await subject.hypervisor.destroy(source.sandbox_id)


@pytest.mark.parametrize("shared", [True, False])
async def test_several_vms_go_on_from_one_saved_state_beside_their_source(
    subject: Subject, shared: bool
) -> None:
    source = subject.lab.define_source(shared=shared)
    state = subject.lab.qemu_file("state")
    await subject.hypervisor.start(source)
    await subject.hypervisor.save(source.sandbox_id, state)
    state.chmod(0o444)
    clones = [subject.lab.define_clone(source, state) for _ in range(3)]
    if source.memory_file is not None:
        source.memory_file.path.chmod(0o444)
    for clone in clones:
        await subject.hypervisor.start(clone)
    listed = {vm.sandbox_id: vm.paused for vm in await subject.hypervisor.list_running()}
    assert listed == {source.sandbox_id: True, **{clone.sandbox_id: False for clone in clones}}
    for definition in (source, *clones):
        await subject.hypervisor.destroy(definition.sandbox_id)


async def test_a_clone_may_be_saved_with_all_its_ram_and_go_on_without_its_template(subject: Subject) -> None:
    template = subject.lab.define_source(shared=True)
    first, second = subject.lab.qemu_file("first"), subject.lab.qemu_file("second")
    await subject.hypervisor.start(template)
    await subject.hypervisor.save(template.sandbox_id, first)
    await subject.hypervisor.destroy(template.sandbox_id)
    clone = subject.lab.define_clone(template, first)
    await subject.hypervisor.start(clone)
    await subject.hypervisor.save(clone.sandbox_id, second)
    await subject.hypervisor.destroy(clone.sandbox_id)
    assert template.memory_file is not None
    template.memory_file.path.unlink()
    alone = subject.lab.define_counting(restore_from=second)
    shared = subject.lab.define_source(shared=True, restore_from=second)
    for definition in (alone, shared):
        await subject.hypervisor.start(definition)
    assert await is_paused(subject) == [False, False]
    for definition in (alone, shared):
        await subject.hypervisor.destroy(definition.sandbox_id)


@pytest.mark.parametrize("fault", ["empty", "truncated", "absent", "no ram", "another layout"])
async def test_a_state_of_no_use_is_a_restore_error_and_leaves_nothing(subject: Subject, fault: str) -> None:
    source = subject.lab.define_source(shared=True)
    state = subject.lab.qemu_file("state")
    await subject.hypervisor.start(source)
    await subject.hypervisor.save(source.sandbox_id, state)
    await subject.hypervisor.destroy(source.sandbox_id)
    clone = subject.lab.define_clone(source, state)
    if fault == "empty":
        state.write_bytes(b"")
    elif fault == "truncated":
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    elif fault == "absent":
        state.unlink()
    elif fault == "no ram":
        clone = dataclasses.replace(clone, memory_file=MemoryFile(subject.lab.path / "absent", shared=False))
    else:
        clone = dataclasses.replace(clone, channels=subject.lab.define().channels)
    with pytest.raises(RestoreError) as caught:
        await subject.hypervisor.start(clone)
    assert caught.value.evidence
    assert await subject.hypervisor.list_running() == []
    # What the caller does then: boots, under the same name.
    booted = subject.lab.define(sandbox_id=clone.sandbox_id)
    vm = await subject.hypervisor.start(booted)
    assert await subject.hypervisor.list_running() == [vm]
    await subject.hypervisor.destroy(clone.sandbox_id)


@pytest.mark.parametrize(("shared", "guest", "size_kib"), [(True, "count", 64), (False, "fill", 4096)])
async def test_no_space_for_a_save_is_said_and_the_vm_can_go_on_and_be_saved_elsewhere(
    subject: Subject, shared: bool, guest: str, size_kib: int
) -> None:
    source = subject.lab.define_source(shared=shared, guest=guest)
    with subject.full_disk(
        size_kib * 1024
    ) as directory:  # before the VM, which has a mount namespace of its own
        await subject.hypervisor.start(source)
        await subject.wait_counting(source)
        with pytest.raises(ExhaustedError) as caught:
            await subject.hypervisor.save(source.sandbox_id, subject.lab.qemu_file(f"{directory.name}/state"))
        assert "No space left" in caught.value.evidence
    assert await is_paused(subject) == [True]
    await subject.hypervisor.resume(source.sandbox_id)
    assert await is_paused(subject) == [False]
    await subject.hypervisor.save(source.sandbox_id, subject.lab.qemu_file("state"))
    await subject.hypervisor.destroy(source.sandbox_id)
