# SPDX-License-Identifier: Apache-2.0
"""Plans cross the wire unchanged; what a hostile agent answers does not pass."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.agent.v1 import agent_pb2 as pb
from hyperd.errors import HyperError, InvalidError, TimeoutExpiredError, UnavailableError
from hyperd.guest import convert
from hyperd.guest.failures import MAX_TEXT, NonsenseError, agent_errors, printable
from hyperd.model import guest as model
from tests.fakes import agent_messages as peer

texts = st.text(max_size=20)
words = st.lists(texts, max_size=3).map(tuple)
sysctls = st.dictionaries(texts, texts, max_size=3)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)

sizes = st.builds(model.TerminalSize, u32, u32)
processes = st.builds(
    model.ProcessPlan,
    args=words,
    env=words,
    working_directory=texts,
    user=texts,
    additional_groups=words,
    terminal=st.booleans(),
    terminal_size=st.none() | sizes,
    stdin=st.booleans(),
    no_new_privileges=st.booleans(),
    rlimits=st.lists(st.builds(model.Rlimit, texts, u64, u64), max_size=3).map(tuple),
    capabilities=st.none() | words,
    seccomp_unconfined=st.booleans(),
)
containers = st.builds(
    model.ContainerPlan,
    container_id=texts.map(model.ContainerId),
    layers=st.lists(st.builds(model.LayerSource, texts, u32, texts), max_size=3).map(tuple),
    writable=st.none() | st.builds(model.WritableSource, texts, texts, texts),
    readonly_root=st.booleans(),
    process=processes,
    hostname=texts,
    mounts=st.lists(st.builds(model.GuestMount, texts, texts, texts, words), max_size=3).map(tuple),
    init=st.booleans(),
    masked_paths=words,
    readonly_paths=words,
    sysctls=sysctls,
    privileged=st.booleans(),
    shm_size_bytes=u64,
    memory_bytes=u64,
    cpu_quota_us=u64,
    cpu_period_us=u64,
    pids_limit=u64,
)
routes = st.builds(model.Route, texts, texts)
links = st.builds(model.Link, texts, texts, words, st.lists(routes, max_size=2).map(tuple), u32)
identities = st.builds(
    model.GuestIdentity,
    hostname=texts,
    entropy=st.binary(max_size=64),
    links=st.lists(links, max_size=2).map(tuple),
    dns_servers=words,
    dns_searches=words,
    dns_options=words,
    hosts=st.lists(st.builds(model.HostEntry, texts, words), max_size=2).map(tuple),
    sysctls=sysctls,
    machine_id=texts,
    boot_id=texts,
    containers=st.lists(
        st.builds(model.ContainerIdentity, texts.map(model.ContainerId), texts), max_size=2
    ).map(tuple),
    fork=st.none() | st.builds(model.ForkIdentity, u32, u32, words),
)


@given(containers)
def test_a_container_plan_arrives_as_it_was_made(plan):
    assert peer.decode_container(convert.encode_container(plan)) == plan


@given(identities)
def test_an_identity_arrives_as_it_was_made_with_the_hosts_clock(identity):
    request = convert.encode_identity(identity)
    assert peer.decode_identity(request) == identity
    assert request.wall_clock_unix_ns > 0


@pytest.mark.parametrize(
    "wrong",
    [
        pb.ReadOutputResponse(offset=99, stream=pb.STREAM_STDOUT, data=b"a gap before"),
        pb.ReadOutputResponse(offset=2**63, stream=pb.STREAM_STDOUT, data=b"beyond all"),
        pb.ReadOutputResponse(offset=7, stream=pb.STREAM_STDOUT, data=b"twice"),
        pb.ReadOutputResponse(offset=8, data=b"of no stream"),
        pb.ReadOutputResponse(offset=8, stream=pb.STREAM_STDOUT),
        pb.ReadOutputResponse(offset=8, stream=pb.STREAM_STDERR, data=bytes(convert.MAX_CHUNK_BYTES + 1)),
    ],
)
def test_output_that_does_not_follow_is_nonsense(wrong):
    with pytest.raises(NonsenseError):
        convert.decode_chunk(wrong, 8)


def status(*, container_id="a" * 64, state=pb.CONTAINER_STATE_RUNNING, processes=()):
    return pb.ContainerStatus(container_id=container_id, state=state, processes=processes)


@pytest.mark.parametrize(
    "wrong",
    [
        [status(container_id="../../etc")],
        [status(container_id="A" * 64)],
        [status(state=pb.CONTAINER_STATE_UNSPECIFIED)],
        [status(), status()],
        [status(processes=[pb.ProcessStatus(process_id="a/b", running=True)])],
        [status(processes=[pb.ProcessStatus(process_id="x", running=True)] * 2)],
        [status(processes=[pb.ProcessStatus(process_id="x")])],
        [status(processes=[pb.ProcessStatus(process_id="x", running=True, exit=pb.ExitStatus())])],
        [status(processes=[pb.ProcessStatus(process_id="x", running=True, output_end_offset=2**63)])],
        [status(processes=[pb.ProcessStatus(running=True)] * (convert.MAX_PROCESSES + 1))],
        [status(container_id=f"{number:064x}") for number in range(convert.MAX_CONTAINERS + 1)],
        [
            status(
                container_id=f"{number:064x}",
                processes=[
                    pb.ProcessStatus(process_id=f"{process}", running=True)
                    for process in range(convert.MAX_PROCESSES)
                ],
            )
            for number in range(convert.MAX_LISTED // convert.MAX_PROCESSES + 1)
        ],
    ],
)
def test_a_list_of_containers_that_cannot_be_is_nonsense(wrong):
    with pytest.raises(NonsenseError):
        convert.decode_containers(pb.ListContainersResponse(containers=wrong))


@pytest.mark.parametrize(("code", "signal"), [(-1, 0), (256, 0), (0, -1), (137, 65), (2**31 - 1, 0)])
def test_an_exit_status_that_cannot_be_is_nonsense(code, signal):
    with pytest.raises(NonsenseError):
        convert.decode_exit(pb.ExitStatus(code=code, signal=signal))


@pytest.mark.parametrize("pid", [0, 2**22 + 1, 2**32 - 1])
def test_a_pid_that_cannot_be_is_nonsense(pid):
    with pytest.raises(NonsenseError):
        convert.decode_pid(pid)


@given(st.text(max_size=3000))
def test_a_guests_words_are_printable_and_bounded(said):
    shown = printable(said)
    assert shown.isprintable()
    assert len(shown) <= MAX_TEXT + 3


def test_a_guests_escape_sequences_do_not_reach_the_terminal():
    hello = convert.decode_hello(
        pb.HelloResponse(agent_version="\x1b]0;owned\x07", kernel_release="6.12\n" * 100)
    )
    assert hello.agent_version.isprintable()
    assert len(hello.kernel_release) <= 131
    assert convert.decode_exit(pb.ExitStatus(code=127, start_error="no\x1b[2J")).start_error.isprintable()


def test_numbers_are_bounded_by_what_sqlite_holds():
    stats = convert.decode_stats(pb.GetStatsResponse(cpu_usage_ns=2**64 - 1))
    assert stats.cpu_usage_ns == 2**63 - 1


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_becomes_an_error_of_ours_with_the_subject(code):
    with pytest.raises(HyperError) as caught, agent_errors("box"):
        raise rpc_error(code, "the guest said\x1b this")
    assert caught.value.subject == "box"
    assert "\x1b" not in str(caught.value)


def test_statuses_keep_their_meaning():
    for code, kind in (
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TimeoutExpiredError),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.CANCELLED, UnavailableError),
    ):
        with pytest.raises(kind), agent_errors("box"):
            raise rpc_error(code, "said")


def rpc_error(code, details):
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details)
