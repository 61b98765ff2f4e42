# SPDX-License-Identifier: Apache-2.0
"""VMs whose memory is shared with who serves them directories: the fake and the real one."""

import hashlib
import pwd
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyperd.config import StorageConfig
from hyperd.errors import HyperError, InvalidError, NotFoundError
from hyperd.model.share import ShareRequest
from hyperd.model.vm import SandboxId, SharePort
from hyperd.storage import LocalShares, Places
from tests.contract.vm.lab import counted, eventually
from tests.contract.vm.subject import Subject
from tests.fakes.hypervisor import FakeHypervisor


class Server:
    """Serves the laboratory's directory to a VM."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        uid = pwd.getpwnam("libvirt-qemu").pw_uid
        places = Places([], [Path("/nowhere")])
        self._shares = LocalShares(
            subject.lab.path / "shares", StorageConfig().virtiofsd, places, owner_of=lambda _: (uid, 0)
        )

    async def serve(self, sandbox_id: SandboxId) -> SharePort:
        if isinstance(self._subject.hypervisor, FakeHypervisor):
            return SharePort("bind0", Path("/fake/bind0.sock"))
        source = self._subject.lab.path / "served"
        source.mkdir(exist_ok=True)
        found = await self._shares.find([ShareRequest("bind0", str(source))])
        (port,) = await self._shares.serve(sandbox_id, found)
        return port

    async def close(self) -> None:
        await self._shares.keep_only([])
        self._shares.close()


@pytest.fixture
async def server(subject: Subject) -> AsyncIterator[Server]:
    made = Server(subject)
    yield made
    await made.close()


async def test_a_share_is_there_from_the_start_or_plugged_in(subject: Subject, server: Server) -> None:
    for plugged in (False, True):
        definition = subject.lab.define(shared_memory=True)
        port = await server.serve(definition.sandbox_id)
        if plugged:
            await subject.hypervisor.start(definition)
            await subject.hypervisor.attach_share(definition.sandbox_id, port)
        else:
            await subject.hypervisor.start(
                subject.lab.define(sandbox_id=definition.sandbox_id, shared_memory=True, shares=(port,))
            )
        await subject.hypervisor.destroy(definition.sandbox_id)
        with pytest.raises(NotFoundError):
            await subject.hypervisor.attach_share(definition.sandbox_id, port)


async def test_a_vm_whose_memory_is_its_own_takes_no_share(subject: Subject, server: Server) -> None:
    definition = subject.lab.define()
    port = await server.serve(definition.sandbox_id)
    await subject.hypervisor.start(definition)
    with pytest.raises(InvalidError):
        await subject.hypervisor.attach_share(definition.sandbox_id, port)
    await subject.hypervisor.destroy(definition.sandbox_id)
    with pytest.raises(InvalidError):
        await subject.hypervisor.start(subject.lab.define(shares=(port,)))


async def test_where_nobody_serves_the_start_fails_and_leaves_nothing(subject: Subject) -> None:
    definition = subject.lab.define(
        shared_memory=True, shares=(SharePort("bind0", subject.lab.path / "nobody.sock"),)
    )
    if isinstance(subject.hypervisor, FakeHypervisor):
        subject.hypervisor.fail_next_start = InvalidError("no such socket")
    with pytest.raises(HyperError):
        await subject.hypervisor.start(definition)
    assert await subject.hypervisor.list_running() == []


async def test_a_clone_with_shared_memory_goes_on_and_its_template_stays_as_it_is(subject: Subject) -> None:
    """Beside one that maps it: what the one with shared memory writes is in neither."""
    template = subject.lab.define_source(shared=True)
    state = subject.lab.qemu_file("state")
    await subject.hypervisor.start(template)
    await subject.wait_counting(template)
    await subject.hypervisor.save(template.sandbox_id, state)
    await subject.hypervisor.destroy(template.sandbox_id)
    assert template.memory_file is not None
    ram = template.memory_file.path
    before = hashlib.sha256(ram.read_bytes()).digest()
    clones = [subject.lab.define_clone(template, state, shared_memory=shared) for shared in (True, False)]
    for clone in clones:
        await subject.hypervisor.start(clone)
    if not isinstance(subject.hypervisor, FakeHypervisor):
        last = counted(template)[-1]
        for clone in clones:
            await eventually(lambda clone=clone: len(counted(clone)) > 2)  # type: ignore[misc]
            assert counted(clone)[0] >= last
    for clone in clones:
        await subject.hypervisor.destroy(clone.sandbox_id)
    assert hashlib.sha256(ram.read_bytes()).digest() == before


async def test_a_template_whose_ram_is_gone_is_a_restore_error(subject: Subject) -> None:
    template = subject.lab.define_source(shared=True)
    state = subject.lab.qemu_file("state")
    await subject.hypervisor.start(template)
    await subject.hypervisor.save(template.sandbox_id, state)
    await subject.hypervisor.destroy(template.sandbox_id)
    clone = subject.lab.define_clone(template, state, shared_memory=True)
    assert template.memory_file is not None
    template.memory_file.path.unlink()
    with pytest.raises(HyperError, match="cannot be restored"):
        await subject.hypervisor.start(clone)
    assert await subject.hypervisor.list_running() == []
