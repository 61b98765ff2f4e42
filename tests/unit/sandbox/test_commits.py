# SPDX-License-Identifier: Apache-2.0
"""Commits: the container's configuration, and how far they are."""

from hyperd.model.container import ContainerSpec
from hyperd.model.image import ImageConfig, NewImage
from hyperd.sandbox import Fleet
from tests.fakes.world import World, started
from tests.unit.sandbox.opening import commit, disk_of


async def test_a_commit_has_the_containers_configuration(world: World, fleet: Fleet) -> None:
    base = world.images.add(
        "web",
        ImageConfig(
            env=("PATH=/bin", "A=1"),
            entrypoint=("/entry",),
            cmd=("serve",),
            labels={"a": "1", "b": "1"},
            exposed_ports=("80/tcp",),
            healthcheck_json="{}",
        ),
    )
    spec = ContainerSpec(
        "web",
        args=("say", "hi"),
        env=("A=2", "B=3"),
        user="1000",
        labels={"b": "2"},
        working_directory="/srv",
        tty=True,
        hostname="box",
    )
    view, _ = await fleet.create(spec)
    handle = fleet.get(view.record.sandbox_id)
    await commit(handle, author="me", message="m", changes=("CMD x",), reference="new:1")
    [made] = world.images.commits
    assert made.base == base.image_id
    assert made.new.overrides == ImageConfig(
        env=("PATH=/bin", "A=2", "B=3"),
        entrypoint=("/entry",),
        cmd=("say", "hi"),
        working_directory="/srv",
        user="1000",
        labels={"a": "1", "b": "2"},
        exposed_ports=("80/tcp",),
        healthcheck_json="{}",
    )
    assert made.new.created_by == "say hi"
    assert (made.new.author, made.new.message, made.new.changes) == ("me", "m", ("CMD x",))


async def test_a_commit_tells_how_far_it_is(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    disk_of(world, handle).write(b"/a", b"x" * (5 << 19))
    told: list[int] = []

    async def tell(done: int) -> None:
        told.append(done)

    await handle.files.commit(NewImage(), pause=False, tell=tell)
    assert told == sorted(told)
    assert len(told) == 3
    assert told[-1] == (5 << 19) + 3
