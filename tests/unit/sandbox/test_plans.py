# SPDX-License-Identifier: Apache-2.0
"""What the agent is told of a container, by Docker's rules for image and request."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperd.model.container import ContainerRecord, ContainerSpec, ExecSpec, Sizing, Ulimit
from hyperd.model.guest import GuestMount, HostEntry, ProcessPlan, Rlimit
from hyperd.model.image import ImageConfig, ImageId, RootDisk
from hyperd.model.network import Attachment
from hyperd.model.vm import SandboxId
from hyperd.sandbox import capabilities, identity, plans, specification

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
    command = specification.command_of(spec, IMAGE)
    return ContainerRecord(ID, "web", spec, ImageId("sha256:0"), command, Sizing(1, 256), datetime.now(UTC))


def process(**fields: object) -> ProcessPlan:
    return plans.container_plan(record(**fields), IMAGE, ROOT).process


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
    plan = plans.container_plan(record(privileged=True), IMAGE, ROOT)
    assert plan.privileged
    assert plan.process.capabilities == capabilities.ALL
    assert plan.process.seccomp_unconfined
    assert plan.masked_paths == plan.readonly_paths == ()
    assert plans.container_plan(record(), IMAGE, ROOT).masked_paths


def test_an_exec_inherits_what_it_is_not_given() -> None:
    box = record(env=("A=2",), cap_add=("NET_ADMIN",), ulimits=(Ulimit("nofile", 1, 2),))
    plan = plans.exec_plan(box, IMAGE, ExecSpec(("ls",), env=("C=3",), tty=True))
    assert plan.env[-2:] == ("TERM=xterm", "C=3")
    assert plan.user == "web"
    assert plan.rlimits == (Rlimit("RLIMIT_NOFILE", 1, 2),)
    assert plan.capabilities is not None
    assert "CAP_NET_ADMIN" in plan.capabilities
    assert (
        plans.exec_plan(box, IMAGE, ExecSpec(("ls",), user="root", privileged=True)).capabilities
        == capabilities.ALL
    )


def test_a_fraction_of_a_cpu_is_a_quota_on_the_next_whole_one() -> None:
    spec = ContainerSpec("i", cpus=1.5)
    assert specification.sizing_of(spec, Sizing(1, 256)) == Sizing(2, 256)
    plan = plans.container_plan(record(cpus=1.5), IMAGE, ROOT)
    assert (plan.cpu_quota_us, plan.cpu_period_us) == (150_000, 100_000)
    assert plans.container_plan(record(cpus=2.0), IMAGE, ROOT).cpu_quota_us == 0
    assert specification.sizing_of(
        ContainerSpec("i", memory_bytes=(512 << 20) + 5), Sizing(1, 256)
    ) == Sizing(1, 512)


def test_tmpfs_options_override_the_defaults() -> None:
    plan = plans.container_plan(record(tmpfs={"/run": "", "/x": "exec,size=1m"}), IMAGE, ROOT)
    assert plan.mounts == (
        GuestMount("/run", "tmpfs", options=("nosuid", "nodev", "noexec")),
        GuestMount("/x", "tmpfs", options=("nosuid", "nodev", "exec", "size=1m")),
    )


def test_the_guest_s_identity_has_the_lease_and_the_user_s_hosts() -> None:
    box = record(extra_hosts=("db:10.0.0.9", "v6=[::1]"), dns_servers=("1.1.1.1",))
    given = identity.identity_of(box, (WIRE,), b"entropy", BOOT_ID)
    assert given.links[0].addresses == ("10.0.0.2/24",)
    assert given.links[0].routes[0].gateway == "10.0.0.1"
    assert given.hosts == (
        HostEntry("10.0.0.9", ("db",)),
        HostEntry("::1", ("v6",)),
    )
    assert given.dns_servers == ("1.1.1.1",)
    assert given.dns_searches == ("lan",)
    assert identity.identity_of(box, (), b"", BOOT_ID).links == ()
    assert b"entropy".hex() not in repr(given)
    assert "entropy" not in repr(given)


def test_ids_are_the_sandbox_s_own_and_one_of_them_the_boot_s() -> None:
    first, again = (identity.identity_of(record(), (WIRE,), b"", uuid.uuid4()) for _ in range(2))
    assert first.machine_id == again.machine_id != ID[:32]
    assert len(first.machine_id) == 32
    assert first.boot_id != again.boot_id
    assert identity.machine_id_of(SandboxId("d" * 64)) != first.machine_id


def test_each_layer_is_a_partition_of_the_image_s_disk() -> None:
    assert [layer.partition for layer in plans.container_plan(record(), IMAGE, ROOT).layers] == [1, 2, 3]


def test_a_guest_gets_both_kinds_of_addresses_and_ways_out() -> None:
    six = replace(WIRE, address6="fd00::2", prefix_length6=64, gateway6="fd00::1")
    (link,) = identity.wiring_of(record(), (six,)).links
    assert link.addresses[1] == "fd00::2/64"
    assert [(route.destination, route.gateway) for route in link.routes][1] == ("::/0", "fd00::1")


def test_a_container_is_called_by_its_name_its_short_id_and_its_aliases() -> None:
    made = record(network="back", network_aliases=("db",))
    assert identity.names_of(made, "back") == (made.name, made.sandbox_id[:12], "db")


def test_unlimited_is_minus_one() -> None:
    assert process(ulimits=(Ulimit("CORE", -1, -1),)).rlimits == (
        Rlimit("RLIMIT_CORE", 2**64 - 1, 2**64 - 1),
    )


def test_a_spec_shows_no_environment_in_a_log() -> None:
    assert "hunter2" not in repr(record(env=("PASSWORD=hunter2",)))
    assert "hunter2" not in repr(process(env=("PASSWORD=hunter2",)))
