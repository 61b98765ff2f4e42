# SPDX-License-Identifier: Apache-2.0
"""Files through the wire: what an agent that keeps the protocol sends, and what one that does not may send."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyper.agent.v1 import agent_pb2 as pb
from hyperd.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.guest import AgentDialer, Guest
from hyperd.model.guest import (
    Change,
    ChangeKind,
    ContainerId,
    ContainerPlan,
    LayerSource,
    PathStat,
    ProcessPlan,
    WritableSource,
    WriteOptions,
)
from tests.fakes.agent import AgentPeer, serving
from tests.fakes.archives import MODIFIED_AT, PIECE_BYTES
from tests.fakes.guest import FakeAgent

BOX = ContainerId("b" * 64)
PLAN = ContainerPlan(
    BOX,
    (LayerSource("image", 1),),
    WritableSource("writable", "container"),
    readonly_root=True,
    process=ProcessPlan(("sleep",), ()),
)
BIG = bytes(range(256)) * 4096
STAT = pb.PathStat(name=b"a", size_bytes=1, mode=0o100644)


@pytest.fixture
async def peer() -> AsyncIterator[AgentPeer]:
    with tempfile.TemporaryDirectory() as short:
        async with serving(FakeAgent(), Path(short)) as serving_peer:
            yield serving_peer


@pytest.fixture
async def guest(peer: AgentPeer) -> AsyncIterator[Guest]:
    dialed = await AgentDialer().connect(peer.control.path, peer.stream.path, timeout_s=5, subject="box")
    await dialed.open_root(PLAN)
    yield dialed
    await dialed.close()


async def given(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_root_is_opened_as_it_was_planned_once(peer: AgentPeer, guest: Guest) -> None:
    opened = peer.agent.containers[BOX].plan
    assert (opened.layers, opened.writable, opened.readonly_root) == (PLAN.layers, PLAN.writable, True)
    with pytest.raises(ExistsError):
        await guest.open_root(PLAN)
    await guest.delete_container(BOX)
    with pytest.raises(NotFoundError):
        await anext(guest.read_root(BOX))


async def test_files_are_read_and_written(peer: AgentPeer, guest: Guest) -> None:
    await guest.write_tree(BOX, WriteOptions(b"/srv"), given(BIG, b"", b"end"))
    assert peer.agent.files.all() == {b"/srv/written": BIG + b"end"}
    tar = b"/srv/written\n" + BIG + b"end"
    assert b"".join([piece async for piece in guest.read_layer(BOX, freeze=False)]) == tar
    assert b"".join([piece async for piece in guest.read_root(BOX)]) == tar
    found = [item async for item in guest.read_tree(BOX, b"/srv/written")]
    assert found[0] == PathStat(b"written", len(BIG) + 3, 0o100644, MODIFIED_AT)
    assert b"".join(item for item in found[1:] if isinstance(item, bytes)) == BIG + b"end"
    peer.agent.files.write(b"/\xff", b"")
    changes = [change async for change in guest.list_changes(BOX)]
    assert changes == [Change(ChangeKind.ADDED, b"/srv/written"), Change(ChangeKind.ADDED, b"/\xff")]


async def test_what_is_not_there_is_not_found(guest: Guest) -> None:
    with pytest.raises(NotFoundError):
        await anext(guest.read_tree(BOX, b"/absent"))
    with pytest.raises(NotFoundError):
        await guest.write_tree(ContainerId("c" * 64), WriteOptions(b"/"), given(b"tar"))
    peer_less = guest.list_changes(ContainerId("c" * 64))
    with pytest.raises(NotFoundError):
        await anext(peer_less)


async def test_who_stops_reading_ends_the_call_and_what_stood_still_goes_on(
    peer: AgentPeer, guest: Guest
) -> None:
    peer.agent.files.write(b"/a", BIG)
    layer = guest.read_layer(BOX, freeze=True)
    await anext(layer)
    assert peer.agent.files.frozen_for == 1
    await layer.aclose()
    async with asyncio.timeout(5):
        while peer.agent.files.frozen_for:
            await peer.agent.pulse.wait()


async def test_who_is_cancelled_ends_the_call(peer: AgentPeer, guest: Guest) -> None:
    peer.archives.answers, peer.archives.hang = [pb.ReadLayerResponse(data=b"x")], True

    async def read() -> None:
        async for _ in guest.read_layer(BOX, freeze=True):
            pass

    reading = asyncio.get_running_loop().create_task(read())
    async with asyncio.timeout(5):
        while not peer.agent.files.frozen_for:
            await peer.agent.pulse.wait()
        reading.cancel()
        await asyncio.wait((reading,))
        while peer.agent.files.frozen_for:
            await peer.agent.pulse.wait()


async def test_a_connection_that_breaks_ends_every_call(peer: AgentPeer, guest: Guest) -> None:
    peer.archives.answers, peer.archives.hang = [], True
    peer.agent.files.pieces = 0

    async def read() -> None:
        async for _ in guest.read_root(BOX):
            pass

    async with asyncio.timeout(5):
        reading = asyncio.get_running_loop().create_task(read())
        writing = asyncio.get_running_loop().create_task(
            guest.write_tree(BOX, WriteOptions(b"/"), given(b"tar"))
        )
        await peer.agent.wait_called("read_tree")
        await peer.agent.wait_called("write_tree")
        peer.stream.hang_up()
        for task in (reading, writing):
            with pytest.raises(UnavailableError):
                await task
    with pytest.raises(UnavailableError):
        await anext(guest.list_changes(BOX))
    with pytest.raises(UnavailableError):
        await guest.write_tree(BOX, WriteOptions(b"/"), given(b"tar"))


async def test_a_refusal_is_heard_before_all_was_sent(peer: AgentPeer, guest: Guest) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"no tar"
        await asyncio.Event().wait()

    with pytest.raises(InvalidError, match="no tar"):
        async with asyncio.timeout(5):
            await guest.write_tree(BOX, WriteOptions(b"/"), endless())


async def test_a_refusal_is_heard_by_who_goes_on_writing(peer: AgentPeer, guest: Guest) -> None:
    """grpc.aio would say INTERNAL when a write is on its way as the call ends: not always, so this is done often."""
    for _ in range(40):
        with pytest.raises(InvalidError, match="no tar"):
            await guest.write_tree(BOX, WriteOptions(b"/"), given(b"no tar", *[BIG] * 20))


async def test_what_the_sender_raises_goes_through_and_nothing_is_written(
    peer: AgentPeer, guest: Guest
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"tar"
        raise InvalidError("the client sent nonsense")

    with pytest.raises(InvalidError, match="the client sent nonsense"):
        await guest.write_tree(BOX, WriteOptions(b"/"), broken())
    assert peer.agent.files.all() == {}


@pytest.mark.parametrize("call", ["read", "write"])
async def test_a_guest_that_moves_no_byte_is_given_up(
    peer: AgentPeer, guest: Guest, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_patience() -> None:
        monkeypatch.setattr("hyperd.guest.archives.STALL_S", 0.05)

    if call == "read":
        peer.archives.answers, peer.archives.hang = [pb.ReadLayerResponse(data=b"x")], True
        layer = guest.read_layer(BOX, freeze=False)
        assert await anext(layer) == b"x"
        lose_patience()
        with pytest.raises(TimeoutExpiredError, match="no byte"):
            await anext(layer)
    else:
        peer.agent.files.pieces = 0
        lose_patience()
        with pytest.raises(TimeoutExpiredError, match="no byte"):
            await guest.write_tree(BOX, WriteOptions(b"/"), given(b"tar"))


async def test_an_agent_that_has_waited_too_long_for_bytes_says_so(peer: AgentPeer, guest: Guest) -> None:
    for call, work in (
        ("read_layer", lambda: anext(guest.read_layer(BOX, freeze=False))),
        ("write_tree", lambda: guest.write_tree(BOX, WriteOptions(b"/"), given(b"tar"))),
    ):
        peer.agent.fail_next(call, TimeoutExpiredError("nothing moved for 60 s"))
        with pytest.raises(TimeoutExpiredError, match="no byte moved") as caught:
            await work()
        assert "nothing moved for 60 s" in caught.value.evidence


async def test_a_file_that_changed_under_it_is_the_wrong_moment(
    peer: AgentPeer, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WrongStateError, "code", "ABORTED")
    peer.agent.fail_next("read_layer", WrongStateError("/a shrank"))
    with pytest.raises(WrongStateError, match="/a shrank"):
        await anext(guest.read_layer(BOX, freeze=False))


@pytest.mark.parametrize(
    "answers",
    [
        [pb.ReadTreeResponse(data=b"x")],
        [pb.ReadTreeResponse(stat=STAT), pb.ReadTreeResponse(stat=STAT)],
        [pb.ReadTreeResponse()],
        [],
        [pb.ReadTreeResponse(stat=STAT), pb.ReadTreeResponse(data=b"")],
        [pb.ReadTreeResponse(stat=STAT), pb.ReadTreeResponse(data=b"x" * (256 * 1024 + 1))],
        *(
            [pb.ReadTreeResponse(stat=stat)]
            for stat in (
                pb.PathStat(name=b""),
                pb.PathStat(name=b"../../etc/passwd"),
                pb.PathStat(name=b"a\0b"),
                pb.PathStat(name=b"a" * 5000),
                pb.PathStat(name=b"a", mode=0o200000),
                pb.PathStat(name=b"a", size_bytes=1 << 63),
                pb.PathStat(name=b"a", link_target=b"x" * 5000),
            )
        ),
    ],
)
async def test_nonsense_about_a_path_is_not_believed(
    peer: AgentPeer, guest: Guest, answers: list[object]
) -> None:
    peer.archives.answers = answers
    with pytest.raises(UnavailableError, match="makes no sense"):
        async for _ in guest.read_tree(BOX, b"/a"):
            pass


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [pb.Change(kind=pb.CHANGE_KIND_ADDED, path=b"a")],
        [pb.Change(kind=pb.CHANGE_KIND_ADDED, path=b"")],
        [pb.Change(kind=pb.CHANGE_KIND_ADDED, path=b"/a\0")],
        [pb.Change(kind=pb.CHANGE_KIND_ADDED, path=b"/" + b"a" * 70_000)],
        [pb.Change(kind=pb.CHANGE_KIND_UNSPECIFIED, path=b"/a")],
        [pb.Change(kind=77, path=b"/a")],  # type: ignore[arg-type]
    ],
)
async def test_nonsense_about_changes_is_not_believed(
    peer: AgentPeer, guest: Guest, changes: list[pb.Change]
) -> None:
    peer.archives.answers = [pb.ListChangesResponse(changes=changes)]
    with pytest.raises(UnavailableError, match="makes no sense"):
        await anext(guest.list_changes(BOX))


async def test_changes_without_end_are_not_believed(
    peer: AgentPeer, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.guest.archive_messages.MAX_CHANGES", 3)
    one = pb.ListChangesResponse(changes=[pb.Change(kind=pb.CHANGE_KIND_DELETED, path=b"/a")] * 2)
    peer.archives.answers = [one, one]
    with pytest.raises(UnavailableError, match="2 changes after 2"):
        async for _ in guest.list_changes(BOX):
            pass


@pytest.mark.parametrize("size", [0, 256 * 1024 + 1])
async def test_a_layer_comes_in_pieces_of_a_size(peer: AgentPeer, guest: Guest, size: int) -> None:
    peer.archives.answers = [pb.ReadLayerResponse(data=b"x" * size)]
    with pytest.raises(UnavailableError, match="makes no sense"):
        await anext(guest.read_layer(BOX, freeze=False))


def test_a_piece_is_one_message() -> None:
    assert PIECE_BYTES <= 256 * 1024
