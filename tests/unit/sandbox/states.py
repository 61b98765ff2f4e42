# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies of states, events and specs."""

from datetime import UTC

from hypothesis import strategies as st

from hyperd.model.container import ContainerSpec, Exit, ExitReason, StartPath, StartReport, Ulimit
from hyperd.model.guest import TerminalSize
from hyperd.model.network import Attachment, PortRequest
from hyperd.model.snapshot import Compatibility, SnapshotId
from hyperd.sandbox import machine

times = st.datetimes(timezones=st.just(UTC))
texts = st.text(max_size=8)
exits = st.builds(Exit, st.integers(0, 255), st.sampled_from(ExitReason), st.integers(0, 64), texts)
attachments = st.builds(
    Attachment,
    sandbox_id=st.just("a" * 64),
    network=texts,
    tap=texts,
    mac=texts,
    address=texts,
    prefix_length=st.integers(0, 32),
    gateway=texts,
    mtu=st.integers(0, 9000),
    dns_servers=st.tuples(texts),
    dns_searches=st.just(()),
    dns_options=st.just(()),
)
numbers = st.integers(0, 1 << 31)
made_of = st.builds(
    Compatibility, texts, texts, texts, texts, texts, texts, texts, numbers, numbers, texts, numbers
)
reports = st.builds(
    StartReport, st.sampled_from(StartPath), texts, st.dictionaries(texts, numbers, max_size=2)
)
facts = st.builds(
    machine.RunFacts,
    times,
    numbers,
    numbers,
    texts,
    texts,
    numbers,
    st.none() | attachments,
    st.none() | reports,
    made_of=st.none() | made_of,
)
snapshot_ids = texts.map(SnapshotId)
ports = st.none() | st.lists(st.builds(PortRequest, numbers, host_port=numbers), max_size=2).map(tuple)
asleep = st.builds(machine.Hibernated, snapshot_ids, facts, times, ports)
states = st.one_of(
    st.builds(machine.Created),
    st.builds(machine.Starting, times, st.none() | asleep),
    st.builds(machine.Starting, times, back_to=snapshot_ids, ports=ports),
    st.builds(machine.Running, facts),
    st.builds(machine.Paused, facts),
    asleep,
    st.builds(machine.Stopping, facts, st.none() | exits),
    st.builds(machine.Exited, exits, times, times, st.none() | reports),
    st.builds(machine.Failed, exits, st.none() | times, times, st.none() | reports),
    st.builds(machine.Removing),
)
events = st.one_of(
    st.builds(machine.Start, times),
    st.builds(machine.Started, facts),
    st.builds(machine.StartFailed, exits, times),
    st.builds(machine.Pause),
    st.builds(machine.Unpause),
    st.builds(machine.Slept, snapshot_ids, times, ports),
    st.builds(machine.RollBack, snapshot_ids, times, ports),
    st.builds(machine.Stop, st.none() | exits),
    st.builds(machine.Gone, exits, times),
    st.builds(machine.Lost, exits, times),
    st.builds(machine.Remove),
)
words = st.lists(texts, max_size=3).map(tuple)
tables = st.dictionaries(texts, texts, max_size=2)
specs = st.builds(
    ContainerSpec,
    image=texts,
    name=texts,
    args=words,
    entrypoint=st.none() | words,
    env=words,
    labels=tables,
    sysctls=tables,
    tmpfs=tables,
    tty=st.booleans(),
    cpus=st.floats(0, 64),
    memory_bytes=numbers,
    ulimits=st.lists(st.builds(Ulimit, texts, numbers, numbers), max_size=2).map(tuple),
    stop_timeout_s=st.none() | numbers,
    auto_remove=st.booleans(),
    terminal_size=st.none() | st.builds(TerminalSize, numbers, numbers),
)
