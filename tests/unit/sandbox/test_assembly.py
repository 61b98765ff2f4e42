# SPDX-License-Identifier: Apache-2.0
"""Docker's rules: how image and request make one container."""

import contextlib
import signal
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.container import ContainerRecord, ContainerSpec, ExecSpec, Sizing, Ulimit
from hyperd.model.guest import GuestMount, HostEntry, ProcessPlan, Rlimit
from hyperd.model.image import ImageConfig, ImageId, RootDisk
from hyperd.model.network import Attachment
from hyperd.model.vm import SandboxId
from hyperd.sandbox import assembly, capabilities, parse_signal

ID = SandboxId("0123456789ab" + "c" * 52)
BOOT_ID = uuid.uuid4()
IMAGE = ImageConfig(
    entrypoint=("/entry",), cmd=("a", "b"), env=("PATH=/bin", "A=1"), working_directory="/srv", user="web"
)
ROOT = RootDisk(Path("/images/disk.vmdk"), 3)
WIRE = Attachment(
    ID, "bridge", "tap0", "aa:bb", "10.0.0.2", 24, "10.0.0.1", 1400, ("10.0.0.1",), ("lan",), ()
)


def record(**fields: object) -> ContainerRecord:
    spec = ContainerSpec("img", **fields)  # type: ignore[arg-type]
    command = assembly.command_of(spec, IMAGE)
    return ContainerRecord(ID, "web", spec, ImageId("sha256:0"), command, Sizing(1, 256), datetime.now(UTC))


def process(**fields: object) -> ProcessPlan:
    return assembly.container_plan(record(**fields), IMAGE, ROOT).process


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("/entry", "a", "b")),
        ({"args": ("c",)}, ("/entry", "c")),
        ({"entrypoint": ("/other",)}, ("/other",)),
        ({"entrypoint": ("/other", "x"), "args": ("c",)}, ("/other", "x", "c")),
        ({"entrypoint": ("",), "args": ("sh", "-c")}, ("sh", "-c")),
        ({"entrypoint": (), "args": ("sh",)}, ("sh",)),
    ],
)
def test_entrypoint_and_arguments_combine_as_docker_has_it(
    fields: dict[str, object], expected: tuple[str, ...]
) -> None:
    assert record(**fields).command == expected


@pytest.mark.parametrize("spec", [ContainerSpec("i"), ContainerSpec("i", entrypoint=("",))])
def test_nothing_to_run_is_refused(spec: ContainerSpec) -> None:
    with pytest.raises(InvalidError, match="no command"):
        assembly.command_of(spec, ImageConfig())


def test_an_empty_word_is_a_command() -> None:
    assert assembly.command_of(ContainerSpec("i", args=("",)), ImageConfig(cmd=("sh",))) == ("",)


def test_the_environment_is_the_image_s_then_the_user_s() -> None:
    env = process(env=("A=2", "B=x=y", "PATH")).env
    assert env == ("HOSTNAME=0123456789ab", "A=2", "B=x=y")
    assert "TERM=xterm" in process(tty=True).env
    assert process(env=("HOSTNAME=mine",), hostname="h").env[0] == "HOSTNAME=mine"


def test_user_and_directory_are_the_request_s_else_the_image_s() -> None:
    assert (process().user, process().working_directory) == ("web", "/srv")
    given_ = process(user="1000:100", working_directory="/tmp")
    assert (given_.user, given_.working_directory) == ("1000:100", "/tmp")


def test_privileged_lifts_every_confinement() -> None:
    plan = assembly.container_plan(record(privileged=True), IMAGE, ROOT)
    assert plan.privileged
    assert plan.process.capabilities == capabilities.ALL
    assert plan.process.seccomp_unconfined
    assert plan.masked_paths == plan.readonly_paths == ()
    assert assembly.container_plan(record(), IMAGE, ROOT).masked_paths


def test_an_exec_inherits_what_it_is_not_given() -> None:
    box = record(env=("A=2",), cap_add=("NET_ADMIN",), ulimits=(Ulimit("nofile", 1, 2),))
    plan = assembly.exec_plan(box, IMAGE, ExecSpec(("ls",), env=("C=3",), tty=True))
    assert plan.env[-2:] == ("TERM=xterm", "C=3")
    assert plan.user == "web"
    assert plan.rlimits == (Rlimit("RLIMIT_NOFILE", 1, 2),)
    assert plan.capabilities is not None
    assert "CAP_NET_ADMIN" in plan.capabilities
    assert (
        assembly.exec_plan(box, IMAGE, ExecSpec(("ls",), user="root", privileged=True)).capabilities
        == capabilities.ALL
    )


def test_a_fraction_of_a_cpu_is_a_quota_on_the_next_whole_one() -> None:
    spec = ContainerSpec("i", cpus=1.5)
    assert assembly.sizing_of(spec, Sizing(1, 256)) == Sizing(2, 256)
    plan = assembly.container_plan(record(cpus=1.5), IMAGE, ROOT)
    assert (plan.cpu_quota_us, plan.cpu_period_us) == (150_000, 100_000)
    assert assembly.container_plan(record(cpus=2.0), IMAGE, ROOT).cpu_quota_us == 0
    assert assembly.sizing_of(ContainerSpec("i", memory_bytes=(512 << 20) + 5), Sizing(1, 256)) == Sizing(
        1, 512
    )


def test_tmpfs_options_override_the_defaults() -> None:
    plan = assembly.container_plan(record(tmpfs={"/run": "", "/x": "exec,size=1m"}), IMAGE, ROOT)
    assert plan.mounts == (
        GuestMount("/run", "tmpfs", options=("nosuid", "nodev", "noexec")),
        GuestMount("/x", "tmpfs", options=("nosuid", "nodev", "exec", "size=1m")),
    )


def test_the_guest_s_identity_has_the_lease_and_the_user_s_hosts() -> None:
    box = record(extra_hosts=("db:10.0.0.9", "v6=[::1]"), dns_servers=("1.1.1.1",))
    identity = assembly.identity(box, (WIRE,), b"entropy", BOOT_ID)
    assert identity.links[0].addresses == ("10.0.0.2/24",)
    assert identity.links[0].routes[0].gateway == "10.0.0.1"
    assert identity.hosts == (
        HostEntry("10.0.0.9", ("db",)),
        HostEntry("::1", ("v6",)),
    )
    assert identity.dns_servers == ("1.1.1.1",)
    assert identity.dns_searches == ("lan",)
    assert assembly.identity(box, (), b"", BOOT_ID).links == ()
    assert b"entropy".hex() not in repr(identity)
    assert "entropy" not in repr(identity)


def test_ids_are_the_sandbox_s_own_and_one_of_them_the_boot_s() -> None:
    first, again = (assembly.identity(record(), (WIRE,), b"", uuid.uuid4()) for _ in range(2))
    assert first.machine_id == again.machine_id != ID[:32]
    assert len(first.machine_id) == 32
    assert first.boot_id != again.boot_id
    assert assembly.machine_id_of(SandboxId("d" * 64)) != first.machine_id


def test_each_layer_is_a_partition_of_the_image_s_disk() -> None:
    assert [layer.partition for layer in assembly.container_plan(record(), IMAGE, ROOT).layers] == [1, 2, 3]


@pytest.mark.parametrize(
    "fields",
    [
        {"env": ("=x",)},
        {"env": ("",)},
        {"env": ("A=\0",)},
        {"args": ("a\0",)},
        {"user": "\0"},
        {"cap_add": ("NOPE",)},
        {"cap_drop": ("CAP_",)},
        {"stop_signal": "NOPE"},
        {"ulimits": (Ulimit("nope", 1, 1),)},
        {"ulimits": (Ulimit("nofile", 2, 1),)},
        {"ulimits": (Ulimit("nofile", -1, 1),)},
        {"ulimits": (Ulimit("nofile", -2, -2),)},
        {"sysctls": {"../x": "1"}},
        {"sysctls": {"net": "1"}},
        {"tmpfs": {"run": ""}},
        {"tmpfs": {"/": ""}},
        {"tmpfs": {"/a/../../b": ""}},
        {"working_directory": "srv"},
        {"hostname": "a b"},
        {"hostname": "a" * 65},
        {"cpus": -1.0},
        {"cpus": float("nan")},
        {"cpus": float("inf")},
        {"cpus": 0.001},
        {"extra_hosts": ("db",)},
        {"extra_hosts": ("db:nowhere",)},
        {"dns_servers": ("nowhere",)},
    ],
)
def test_what_no_container_can_be_made_of_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        assembly.require_valid(ContainerSpec("i", **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "why", "instead"),
    [("host", "a kernel of its own", "-p"), ("container:web", "no pods yet", "hyper network create")],
)
def test_the_network_of_the_host_or_of_another_container_is_refused_with_what_to_use(
    network: str, why: str, instead: str
) -> None:
    with pytest.raises(UnsupportedError, match=why) as refused:
        assembly.require_valid(ContainerSpec("i", network=network))
    assert instead in refused.value.hint


@pytest.mark.parametrize(
    "spec",
    [
        ContainerSpec("i", address="nonsense"),
        ContainerSpec("i", address="::1"),
        ContainerSpec("i", address="10.213.0.9", network="none"),
        ContainerSpec("i", network_aliases=("web",)),
        ContainerSpec("i", network="back", network_aliases=("a.b",)),
        ContainerSpec("i", network="back", network_aliases=("",)),
    ],
)
def test_addresses_and_names_that_nobody_can_have_are_refused(spec) -> None:
    with pytest.raises(InvalidError):
        assembly.require_valid(spec)


def test_a_guest_gets_both_kinds_of_addresses_and_ways_out() -> None:
    six = replace(WIRE, address6="fd00::2", prefix_length6=64, gateway6="fd00::1")
    (link,) = assembly.wiring_of(record(), (six,)).links
    assert link.addresses[1] == "fd00::2/64"
    assert [(route.destination, route.gateway) for route in link.routes][1] == ("::/0", "fd00::1")


def test_a_container_is_called_by_its_name_its_short_id_and_its_aliases() -> None:
    made = record(network="back", network_aliases=("db",))
    assert assembly.names_of(made, "back") == (made.name, made.sandbox_id[:12], "db")


def test_unlimited_is_minus_one() -> None:
    assert process(ulimits=(Ulimit("CORE", -1, -1),)).rlimits == (
        Rlimit("RLIMIT_CORE", 2**64 - 1, 2**64 - 1),
    )


@given(number=st.sampled_from(signal.Signals), lower=st.booleans(), prefixed=st.booleans())
def test_a_signal_goes_by_name_and_number(number: signal.Signals, *, lower: bool, prefixed: bool) -> None:
    name = number.name if prefixed else number.name.removeprefix("SIG")
    assert parse_signal(name.lower() if lower else name) == number
    assert parse_signal(str(int(number))) == number


@given(st.text(max_size=12))
def test_a_signal_is_between_1_and_64_or_an_error(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert 1 <= parse_signal(text) <= 64


@pytest.mark.parametrize(
    ("text", "number"), [("RTMIN", 34), ("SIGRTMIN+3", 37), ("rtmax-14", 50), ("RTMAX", 64)]
)
def test_realtime_signals_have_names(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "-9", "RTMIN+31", "RTMAX-31", "SIG", "DFL", "_DFL", "9.0", "KILL "]
)
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_signal(text)


def test_a_spec_shows_no_environment_in_a_log() -> None:
    assert "hunter2" not in repr(record(env=("PASSWORD=hunter2",)))
    assert "hunter2" not in repr(process(env=("PASSWORD=hunter2",)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"network_rate_in": 1024}, "rates have no effect"),
        ({"network_rate_out": 1024}, "rates have no effect"),
        ({"egress": "none"}, "--egress and --security-group have no effect"),
        ({"security_groups": ("web",)}, "--egress and --security-group have no effect"),
    ],
)
def test_what_limits_a_network_that_there_is_not_is_warned_of(fields: dict[str, object], said: str) -> None:
    spec = ContainerSpec("img", network="none", **fields)  # type: ignore[arg-type]
    (warning,) = assembly.with_image_defaults(spec, IMAGE)[1]
    assert warning.startswith(said)
    assert assembly.with_image_defaults(replace(spec, network=""), IMAGE)[1] == []
