# SPDX-License-Identifier: Apache-2.0
"""What may be asked of a container that has another one's network."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.container import (
    ContainerLink,
    ContainerRecord,
    ContainerSpec,
    Exit,
    ExitReason,
    Sizing,
)
from hyperd.model.image import ImageConfig, ImageId, RootDisk
from hyperd.model.network import Endpoint, PortRequest, Protocol
from hyperd.model.vm import SandboxId
from hyperd.model.volume import Mount, MountType
from hyperd.sandbox import endpoints, joined, plans, ports, specification

SPEC = ContainerSpec("i", network="container:web")
CARRIER = ContainerRecord(
    SandboxId("a" * 64),
    "web",
    ContainerSpec("i", hostname="www"),
    ImageId("sha256:0"),
    ("run",),
    Sizing(2, 256),
    datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hostname": "other"}, "hostname and the network mode"),
        ({"links": (ContainerLink("db"),)}, "container type network can't be used with links"),
        ({"dns_servers": ("192.0.2.1",)}, "dns and the network mode"),
        ({"dns_searches": ("example.com",)}, "dns and the network mode"),
        ({"dns_options": ("ndots:1",)}, "dns and the network mode"),
        ({"extra_hosts": ("a:192.0.2.1",)}, "custom host-to-IP mapping and the network mode"),
        ({"mac_address": "02:00:00:00:00:01"}, "mac-address and the network mode"),
        ({"ports": (PortRequest(80, Protocol.TCP),)}, "port publishing and the container type network mode"),
        ({"publish_all": True}, "port publishing and the container type network mode"),
        ({"expose": ("80",)}, "port exposing and the container type network mode"),
        ({"address": "10.0.0.2"}, "static addresses"),
        ({"address6": "fd00::2"}, "static addresses"),
        ({"network_aliases": ("www",)}, "network aliases"),
        ({"gateway_priority": 1}, "gateway priority"),
        ({"egress": "none"}, "egress policies"),
        ({"security_groups": ("g",)}, "security groups"),
        ({"network_rate_in": 1000}, "rates"),
        ({"networks": (Endpoint("back"),)}, "cannot be connected to any other network"),
        ({"network": "container:"}, "invalid container format container:<name|id>"),
        ({"network": "none", "networks": (Endpoint("container:web"),)}, "is a container's only one"),
    ],
)
def test_what_is_the_vms_cannot_be_a_riders_own(fields: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        specification.require_valid(replace(SPEC, **fields))  # type: ignore[arg-type]


def test_nothing_else_is_refused_and_it_has_no_network_to_be_joined_or_published_on() -> None:
    specification.require_valid(SPEC)
    assert endpoints.endpoints_of(SPEC) == ()
    assert ports.wanted(replace(SPEC, publish_all=True, expose=("80",))) == ()


def test_its_carrier_is_recorded_by_id_and_gives_it_its_host_name() -> None:
    found = joined.settled(SPEC, {"web": CARRIER}.__getitem__)
    assert (found.network, found.hostname) == (f"container:{CARRIER.sandbox_id}", "www")
    plain = ContainerSpec("i", network="back")
    assert joined.settled(plain, {}.__getitem__) == plain


def test_who_joins_a_rider_joins_its_carrier() -> None:
    rider = replace(
        CARRIER,
        sandbox_id=SandboxId("b" * 64),
        name="side",
        spec=joined.settled(SPEC, {"web": CARRIER}.__getitem__),
    )
    found = joined.settled(replace(SPEC, network="container:side"), {"side": rider}.__getitem__)
    assert (found.network, found.hostname) == (f"container:{CARRIER.sandbox_id}", "www")


def test_limits_above_its_carriers_vm_are_refused_with_the_arithmetic() -> None:
    joined.require_fits(replace(SPEC, memory_bytes=256 << 20, cpus=2.0), Sizing(2, 256), CARRIER)
    with pytest.raises(InvalidError, match="257 MiB are more than the 256 MiB of the VM of container web"):
        joined.require_fits(SPEC, Sizing(1, 257), CARRIER)
    with pytest.raises(InvalidError, match=r"2\.5 CPUs are more than the 2 of the VM of container web"):
        joined.require_fits(replace(SPEC, cpus=2.5), Sizing(3, 256), CARRIER)


@pytest.mark.parametrize("kind", [MountType.VOLUME, MountType.BIND])
def test_volumes_and_directories_of_the_host_are_refused(kind: MountType) -> None:
    with pytest.raises(UnsupportedError, match="has no volumes"):
        joined.require_mountable(replace(SPEC, mounts=(Mount(kind, "/data", "/x"),)))
    with pytest.raises(UnsupportedError, match="has no volumes"):
        joined.require_mountable(replace(SPEC, volumes_from=("web",)))
    joined.require_mountable(replace(SPEC, mounts=(Mount(MountType.TMPFS, "/tmp"),)))
    joined.require_mountable(ContainerSpec("i", mounts=(Mount(kind, "/data", "/x"),)))


def test_its_plan_has_disks_of_its_own_and_limits_instead_of_a_size() -> None:
    rider = replace(CARRIER, spec=replace(SPEC, memory_bytes=64 << 20, cpus=2.0))
    root = RootDisk(Path("/disk"), 2)
    plan = plans.rider_plan(rider, ImageConfig(), root, CARRIER.sandbox_id)  # type: ignore[arg-type]
    image, writable = plans.rider_serials(rider.sandbox_id)
    assert [layer.disk_serial for layer in plan.layers] == [image, image]
    assert plan.writable is not None
    assert plan.writable.disk_serial == writable
    assert max(len(image), len(writable)) <= 20
    assert (plan.memory_bytes, plan.cpu_quota_us, plan.cpu_period_us) == (64 << 20, 200_000, 100_000)
    assert plan.share_names_with == CARRIER.sandbox_id


def test_a_rider_ends_as_its_carrier_lets_it() -> None:
    ended = joined.end_with("web", Exit(0, ExitReason.EXITED))
    assert (ended.code, ended.signal, ended.reason) == (137, 9, ExitReason.CARRIER_ENDED)
    assert "container web" in ended.message
    lost = joined.end_with("web", Exit(125, ExitReason.GUEST_PANIC, message="Kernel panic"))
    assert (lost.code, lost.reason) == (125, ExitReason.VM_LOST)
    assert "Kernel panic" in lost.message
