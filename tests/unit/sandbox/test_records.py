# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given

from hyperd.errors import ExistsError, UnavailableError
from hyperd.host.database import Database
from hyperd.model.container import ContainerRecord, ContainerSpec, Exit, ExitReason, Sizing
from hyperd.model.guest import ContainerId
from hyperd.model.image import ImageId
from hyperd.model.vm import SandboxId
from hyperd.sandbox import Records, machine
from hyperd.sandbox.records import _MIGRATIONS, dumps, loads
from tests.unit.sandbox.states import specs, states

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def record(digit: str = "a", name: str = "web") -> ContainerRecord:
    spec = ContainerSpec("alpine", env=("A=1",), labels={"k": "v"}, entrypoint=())
    return ContainerRecord(
        SandboxId(digit * 64), name, spec, ImageId("sha256:0"), ("sh",), Sizing(2, 512), NOW
    )


@given(specs)
def test_every_spec_survives_the_round_trip(spec: ContainerSpec) -> None:
    assert loads(ContainerSpec, dumps(spec)) == spec


@given(states)
def test_every_state_survives_the_round_trip(state: machine.State) -> None:
    assert loads(type(state), dumps(state)) == state


def test_an_end_that_was_recorded_without_its_start_is_read() -> None:
    text = '{"exit":{"code":0,"reason":"exited"},"started_at":"2026-01-01T12:00:00+00:00",'
    text += '"finished_at":"2026-01-01T12:00:00+00:00"}'
    for kind in (machine.Exited, machine.Failed):
        assert loads(kind, text) == kind(Exit(0, ExitReason.EXITED), NOW, NOW, None)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "1", '{"image": 1}', '{"image": "a", "unheard": 1}', '{"image": "a", "args": "x"}', "{}",
     '{"image": "a", "tty": 1}', '{"image": "a", "labels": []}', '{"image": "a", "ulimits": [1]}',
     '{"image": "a", "memory_bytes": true}', '{"image": "a", "terminal_size": 3}',
     '{"image": "a", "labels": {"a": 1}}'],
)  # fmt: skip
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        loads(ContainerSpec, text)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"image": "a", "env": {"PASSWORD": "hunter2"}}', "ContainerSpec.env is of type dict"),
        ('{"image": "a", "env": ["A=1", ["hunter2"]]}', "ContainerSpec.env[] is of type list"),
        ('{"image": "a", "labels": {"k": ["hunter2"]}}', "ContainerSpec.labels[] is of type list"),
        ('{"image": "a", "terminal_size": ["hunter2"]}', "ContainerSpec.terminal_size is of type list"),
        ('{"image": "a", "mounts": [{"type": "hunter2"}]}', "ContainerSpec.mounts[].type is no MountType"),
        ('{"image": "a", "healthcheck": {"hunter2": 1}}', "unknown field"),
    ],
)
async def test_a_record_that_does_not_fit_tells_the_field_and_never_the_value(
    database: Database, text: str, field: str
) -> None:
    records = Records(database)
    await records.open()
    await records.insert(record())
    await database.transaction(
        lambda connection: connection.execute("UPDATE sandbox SET spec = ?", (text,)).rowcount
    )
    (stored,) = await records.load()
    assert field in str(stored.unreadable)
    assert isinstance(stored.state, machine.Failed)
    for told in (str(stored.unreadable), stored.state.exit.message):
        assert "hunter2" not in told


async def test_what_was_recorded_is_loaded_oldest_first(database: Database) -> None:
    records = Records(database)
    await records.open()
    await records.insert(record())
    await records.insert(record("b", "other"))
    exited = machine.Exited(Exit(3, ExitReason.OOM, message="x"), NOW, NOW)
    await records.save_state(SandboxId("b" * 64), exited, 7)
    first, second = await records.load()
    assert (first.record, first.state, first.generation) == (record(), machine.Created(), 0)
    assert (second.state, second.generation) == (exited, 7)
    await records.delete(first.record.sandbox_id)
    assert [stored.record.name for stored in await records.load()] == ["other"]


async def test_a_name_is_taken_once(database: Database) -> None:
    records = Records(database)
    await records.open()
    await records.insert(record())
    with pytest.raises(ExistsError, match="in use by container aaaaaaaaaaaa"):
        await records.insert(record("b"))


@pytest.mark.parametrize("column", ["spec", "state", "state_kind", "created_at", "command"])
async def test_a_corrupt_record_is_set_aside_by_its_name(database: Database, column: str) -> None:
    records = Records(database)
    await records.open()
    await records.insert(record())
    await records.insert(record("b", "other"))
    spoil = f"UPDATE sandbox SET {column} = 'rubbish' WHERE name = 'web'"
    await database.transaction(lambda db: db.execute(spoil).rowcount)
    found = {stored.record.name: stored for stored in await records.load()}
    assert "container web" in str(found["web"].unreadable)
    assert isinstance(found["web"].state, machine.Failed)
    assert found["web"].record.sandbox_id == record().sandbox_id
    assert found["other"].unreadable is None


async def test_records_of_a_newer_hyperd_are_left_alone(database: Database) -> None:
    records = Records(database)
    await records.open()
    await records.open()  # idempotent
    await database.transaction(lambda db: db.execute("UPDATE room_schema SET version = 99").rowcount)
    with pytest.raises(UnavailableError, match="version 99"):
        await records.open()


async def test_clones_are_recorded_all_or_none_and_pend_until_all_are_there(database: Database) -> None:
    records = Records(database)
    await records.open()
    await records.insert(record())
    clones = [replace(record(digit, f"web-{digit}"), container_id=ContainerId("a" * 64)) for digit in "bc"]
    with pytest.raises(ExistsError):
        await records.insert(*clones, record("d"), pending=True)
    assert len(await records.load()) == 1
    await records.insert(*clones, pending=True)
    assert [item.pending for item in await records.load()] == [False, True, True]
    assert [item.record for item in await records.load()] == [record(), *clones]
    await records.settle([clone.sandbox_id for clone in clones])
    assert not any(item.pending for item in await records.load())


async def test_records_of_before_there_were_clones_are_read(database: Database) -> None:
    await database.migrate("sandbox", _MIGRATIONS[:1])
    insert = (
        "INSERT INTO sandbox VALUES (?, 'web', 'sha256:0', '2026-01-01T12:00:00+00:00', '{\"image\":\"alpine\"}',"
        " '[\"sh\"]', 1, 256, 'Created', '{}', 0)"
    )
    await database.transaction(lambda db: db.execute(insert, ("a" * 64,)).rowcount)
    records = Records(database)
    await records.open()
    (stored,) = await records.load()
    assert stored.unreadable is None
    assert stored.record.container_id is None
    assert not stored.pending
