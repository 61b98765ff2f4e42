# SPDX-License-Identifier: Apache-2.0
"""Who a guest is: its names, addresses and machine-id, and what it is told of them. Pure."""

import hashlib
import ipaddress
import re
import uuid
from collections.abc import Iterator

from hyperd.errors import InvalidError
from hyperd.model.container import ContainerRecord
from hyperd.model.guest import ContainerId, GuestIdentity, GuestWiring, HostEntry, Link, Route
from hyperd.model.network import Attachment, parse_address6, way_out
from hyperd.model.vm import SandboxId
from hyperd.sandbox import endpoints

HOSTNAME = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9_])?")
MAX_SERVERS = 3  # resolv.conf(5): MAXNS


def container_id_of(record: ContainerRecord) -> ContainerId:
    """A sandbox holds one container, of the same id; a clone's keeps the id that it was born with."""
    return record.container_id or ContainerId(record.sandbox_id)


def hostname_of(record: ContainerRecord) -> str:
    return record.spec.hostname or record.sandbox_id[:12]


def names_of(record: ContainerRecord, network: str) -> tuple[str, ...]:
    """What others on a network of its may call it."""
    return (record.name, record.sandbox_id[:12], *endpoints.aliases_on(record.spec, network))


def machine_id_of(sandbox_id: SandboxId) -> str:
    """The same for the same sandbox, and told by nothing of it (machine-id(5): it should be kept confidential)."""
    return hashlib.sha256(b"hyper machine-id " + sandbox_id.encode()).hexdigest()[:32]


def identity_of(
    record: ContainerRecord, attachments: tuple[Attachment, ...], entropy: bytes, boot_id: uuid.UUID
) -> GuestIdentity:
    wiring = wiring_of(record, attachments)
    return GuestIdentity(
        hostname=hostname_of(record),
        entropy=entropy,
        links=wiring.links,
        dns_servers=wiring.dns_servers,
        dns_searches=wiring.dns_searches,
        dns_options=wiring.dns_options,
        hosts=wiring.hosts,
        machine_id=machine_id_of(record.sandbox_id),
        boot_id=str(boot_id),
    )


def wiring_of(record: ContainerRecord, attachments: tuple[Attachment, ...]) -> GuestWiring:
    """Links, and who is asked for names: what the way out says, unless the container says so itself."""
    spec, out = record.spec, way_out(attachments)
    return GuestWiring(
        links=tuple(_link(attachment, has_default_route=attachment is out) for attachment in attachments),
        dns_servers=spec.dns_servers or _servers(attachments, out),
        dns_searches=spec.dns_searches or (out.dns_searches if out else ()),
        dns_options=spec.dns_options or (out.dns_options if out else ()),
        hosts=tuple(host_entries(spec.extra_hosts)),  # the agent adds the guest's own name
    )


def _link(attachment: Attachment, *, has_default_route: bool) -> Link:
    return Link(
        mac=attachment.mac,
        name=f"eth{attachment.slot}",
        addresses=(f"{attachment.address}/{attachment.prefix_length}", *_addresses6(attachment)),
        routes=tuple(_routes(attachment)) if has_default_route else (),
        mtu=attachment.mtu,
    )


def _addresses6(attachment: Attachment) -> tuple[str, ...]:
    return (f"{attachment.address6}/{attachment.prefix_length6}",) if attachment.address6 else ()


def _routes(attachment: Attachment) -> Iterator[Route]:
    yield Route("0.0.0.0/0", attachment.gateway)
    if attachment.address6:
        yield Route("::/0", attachment.gateway6)


def _servers(attachments: tuple[Attachment, ...], out: Attachment | None) -> tuple[str, ...]:
    """Those of networks that have names, where there are any: each knows all names that its asker may know."""
    named = [at for at in attachments if at.dns_servers == (at.gateway,)]
    chosen = named or ([out] if out else [])
    chosen.sort(key=lambda at: at is not out)
    return tuple(dict.fromkeys(server for at in chosen for server in at.dns_servers))[:MAX_SERVERS]


def host_entries(extra_hosts: tuple[str, ...]) -> list[HostEntry]:
    entries = []
    for entry in extra_hosts:
        name, colon, address = entry.replace("=", ":", 1).partition(":")
        if not colon or not HOSTNAME.fullmatch(name):
            raise InvalidError("is not NAME:ADDRESS", subject=repr(entry))
        entries.append(HostEntry(require_address(address), (name,)))
    return entries


def require_address(text: str) -> str:
    plain = text.strip("[]")
    try:
        return str(parse_address6(plain) if ":" in plain else ipaddress.ip_address(plain))
    except ValueError as error:
        raise InvalidError("is not an IP address", subject=repr(text)) from error
