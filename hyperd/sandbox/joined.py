# SPDX-License-Identifier: Apache-2.0
"""`--network container:ID`: a rider, which runs in the VM of another container, its carrier. What may be asked of it.

It has the carrier's network because it has its kernel: what is the VM's, it cannot have for itself. Conflicts and
their words are Docker's (moby runconfig/errors.go). Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from signal import SIGKILL

from hyperd.errors import InvalidError, UnsupportedError, WrongStateError
from hyperd.model.container import ContainerRecord, ContainerSpec, Exit, ExitReason, Sizing
from hyperd.model.volume import MountType
from hyperd.sandbox import identity, machine
from hyperd.sandbox.endpoints import ANOTHERS_NETWORK, SHARED_NETWORK, carrier_of


def require_valid(spec: ContainerSpec) -> None:
    """Of a rider; of others nothing is said. Raises InvalidError."""
    carrier = carrier_of(spec)
    if carrier is None:
        return
    if not carrier:
        raise InvalidError(
            "invalid container format container:<name|id>", subject=f"--network {spec.network}"
        )
    for given, conflict in _conflicts(spec):
        if given:
            raise InvalidError(
                f"conflicting options: {conflict}",
                subject=f"--network {spec.network}",
                hint="it has the network of that container: give the option to that one",
            )
    if spec.networks:
        raise InvalidError(SHARED_NETWORK, subject=f"--network {spec.networks[0].network}")


def _conflicts(spec: ContainerSpec) -> tuple[tuple[object, str], ...]:
    limits = spec.egress or spec.security_groups or spec.network_rate_in or spec.network_rate_out
    return (
        (spec.hostname, "hostname and the network mode"),
        (
            spec.links,
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (spec.dns_servers or spec.dns_searches or spec.dns_options, "dns and the network mode"),
        (spec.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (spec.mac_address, "mac-address and the network mode"),
        (spec.ports or spec.publish_all, "port publishing and the container type network mode"),
        (spec.expose, "port exposing and the container type network mode"),
        (spec.address or spec.address6, "static addresses and the container type network mode"),
        (spec.network_aliases, "network aliases and the container type network mode"),
        (spec.gateway_priority, "gateway priority and the container type network mode"),
        (limits, "egress policies, security groups or rates and the container type network mode"),
    )


def settled(spec: ContainerSpec, find: Callable[[str], ContainerRecord]) -> ContainerSpec:
    """With its carrier's id and host name. Who names a rider gets its carrier: that is where its network is.

    Raises NotFoundError.
    """
    named = carrier_of(spec)
    if named is None:
        return spec
    found = find(named)
    carrier_id = carrier_of(found.spec) or found.sandbox_id
    return replace(spec, network=f"{ANOTHERS_NETWORK}{carrier_id}", hostname=identity.hostname_of(found))


def require_mountable(spec: ContainerSpec) -> None:
    """Raises UnsupportedError: volumes and shares are devices of a VM of one's own."""
    if carrier_of(spec) is None:
        return
    asked = next((mount for mount in spec.mounts if mount.type is not MountType.TMPFS), None)
    if asked is not None or spec.volumes_from:
        raise UnsupportedError(
            "a container in another one's VM has no volumes and no directories of the host",
            subject=f"mount {asked.destination}"
            if asked is not None
            else f"--volumes-from {spec.volumes_from[0]}",
            hint="its own disk lasts as long as it does; --tmpfs works; or give it a VM of its own",
        )


def warnings_of(image_volumes: Sequence[str]) -> list[str]:
    """What a user is to be told of the volumes of an image."""
    return [
        f"the image's volume {text} is a part of the container's own disk: in another one's VM it has no volumes"
        for text in image_volumes
    ]


def require_fits(spec: ContainerSpec, asked: Sizing, carrier: ContainerRecord) -> None:
    """Its limits, into the VM of its carrier. Raises InvalidError."""
    vm, of_whom = carrier.sizing, f"the VM of container {carrier.name}"
    hint = f"it runs in that VM: ask for less, or give {carrier.name} more when it is created"
    if asked.memory_mib > vm.memory_mib:
        brief = f"{asked.memory_mib} MiB are more than the {vm.memory_mib} MiB of {of_whom}"
        raise InvalidError(brief, subject="--memory", hint=hint)
    if spec.cpus > vm.vcpus:
        brief = f"{spec.cpus:g} CPUs are more than the {vm.vcpus} of {of_whom}"
        raise InvalidError(brief, subject="--cpus", hint=hint)


def require_own_vm(record: ContainerRecord, what: str) -> None:
    """``what`` is done to a VM as a whole. Raises UnsupportedError for a rider."""
    if (carrier := carrier_of(record.spec)) is not None:
        raise UnsupportedError(
            f"runs in the VM of container {carrier[:12]}, and {what} is of a whole VM",
            subject=f"container {record.name}",
        )


def end_with(carrier: str, exit_: Exit) -> Exit:
    """How a rider ends whose carrier, of that name, ends like that."""
    if machine.is_lost(exit_):
        why = f"the VM of container {carrier}, in which it ran, is lost"
        return machine.lost(ExitReason.VM_LOST, "\n".join(filter(None, (why, exit_.message))))
    message = f"container {carrier}, in whose VM it ran, has ended"
    return Exit(128 + SIGKILL, ExitReason.CARRIER_ENDED, signal=SIGKILL, message=message)


def not_running(carrier: str, rider: str) -> WrongStateError:
    """moby daemon/container_operations.go: errNotRunning."""
    return WrongStateError(
        f"cannot join network of a non running container: {carrier}",
        subject=f"container {rider}",
        hint=f"`hyper start {carrier}` first",
    )
