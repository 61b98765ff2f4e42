# SPDX-License-Identifier: Apache-2.0
"""Which networks a container is on: what its specification says of them, and whether that can be. Pure."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from hyperd.errors import InvalidError, NotFoundError, UnsupportedError, WrongStateError
from hyperd.model.container import ContainerRecord, ContainerSpec
from hyperd.model.network import DEFAULT_NETWORK, NO_NETWORK, Endpoint, parse_address6
from hyperd.model.vm import HOT_PLUG_DEVICES, SandboxId

ANOTHERS_NETWORK = "container:"  # what goes before the id of a container whose network it has
# moby runconfig/errors.go: ErrConflictSharedNetwork
SHARED_NETWORK = (
    "container sharing network namespace with another container or host "
    "cannot be connected to any other network"
)
MAX_ENDPOINTS = 1 + HOT_PLUG_DEVICES  # one NIC is there from the start, the others are plugged in
_ALIAS = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


def carrier_of(spec: ContainerSpec) -> SandboxId | None:
    """In whose VM it runs, with that one's network; None: in its own. See joined.py."""
    network = spec.network
    return SandboxId(network.removeprefix(ANOTHERS_NETWORK)) if network.startswith(ANOTHERS_NETWORK) else None


def endpoints_of(spec: ContainerSpec) -> tuple[Endpoint, ...]:
    """In the order of its NICs: those of a VM of its own."""
    if spec.network == NO_NETWORK or carrier_of(spec) is not None:
        return ()
    first = Endpoint(
        spec.network or DEFAULT_NETWORK,
        spec.address,
        spec.network_aliases,
        spec.mac_address,
        spec.gateway_priority,
        spec.address6,
    )
    return (first, *spec.networks)


def with_endpoints(spec: ContainerSpec, endpoints: Sequence[Endpoint]) -> ContainerSpec:
    if not endpoints:
        endpoints = (Endpoint(NO_NETWORK),)
    first, *further = endpoints
    return replace(
        spec,
        network=first.network,
        address=first.address,
        network_aliases=first.aliases,
        mac_address=first.mac_address,
        gateway_priority=first.gateway_priority,
        address6=first.address6,
        networks=tuple(further),
    )


def aliases_on(spec: ContainerSpec, network: str) -> tuple[str, ...]:
    return next((at.aliases for at in endpoints_of(spec) if at.network == network), ())


def of_clone(spec: ContainerSpec, network: str) -> ContainerSpec:
    """On ``network``, with neither address nor MAC of its source's."""
    return replace(spec, network=network, networks=(), address="", address6="", mac_address="")


def require_valid(spec: ContainerSpec) -> None:
    """All that can be said without knowing which networks there are. Raises InvalidError, UnsupportedError."""
    names = [spec.network or DEFAULT_NETWORK, *(at.network for at in spec.networks)]
    if carrier_of(spec) is not None:
        return
    for name in names:
        _require_supported(name)
    if NO_NETWORK in names and len(names) > 1:
        raise InvalidError("is of no network, and there are others", subject="--network none")
    if NO_NETWORK in names:
        asked = (("--ip", spec.address), ("--ip6", spec.address6), ("--mac-address", spec.mac_address))
        for flag, value in asked:
            if value:
                raise InvalidError("there is no address with --network none", subject=f"{flag} {value}")
        _require_named_network(spec.network_aliases)
    if len(names) > MAX_ENDPOINTS:
        raise InvalidError(f"more than {MAX_ENDPOINTS} networks", subject=f"--network {names[-1]}")
    for endpoint in endpoints_of(spec):
        require_valid_endpoint(endpoint)


def require_valid_endpoint(endpoint: Endpoint) -> None:
    """Raises InvalidError, UnsupportedError."""
    _require_supported(endpoint.network)
    for alias in endpoint.aliases:
        if not _ALIAS.fullmatch(alias):
            raise InvalidError("is not a name of one label", subject=f"--network-alias {alias!r}")
    if endpoint.network == DEFAULT_NETWORK:
        _require_named_network(endpoint.aliases)
    if endpoint.address:
        _require_address(endpoint.address, ipaddress.IPv4Address, "IPv4", "--ip")
    if endpoint.address6:
        _require_address(endpoint.address6, parse_address6, "IPv6", "--ip6")
    if endpoint.mac_address:
        _require_mac(endpoint.mac_address)


def require_distinct(endpoints: Sequence[Endpoint]) -> None:
    """With the networks' own names. Raises InvalidError."""
    names = [at.network for at in endpoints]
    for name in names:
        if names.count(name) > 1:  # moby runconfig/opts: "network %q is specified multiple times"
            raise InvalidError("is given more than once", subject=f"network {name}")


def connected(record: ContainerRecord, endpoint: Endpoint) -> ContainerSpec:
    """Its specification with one more. Raises WrongStateError, InvalidError."""
    require_own_network(record)
    before = endpoints_of(record.spec)
    if any(at.network == endpoint.network for at in before):
        raise WrongStateError(f"is on network {endpoint.network} already", subject=f"container {record.name}")
    if len(before) >= MAX_ENDPOINTS:
        raise InvalidError(f"more than {MAX_ENDPOINTS} networks", subject=f"container {record.name}")
    return with_endpoints(record.spec, [*before, endpoint])


def disconnected(record: ContainerRecord, network: str) -> ContainerSpec:
    """Its specification with one less. Raises NotFoundError, WrongStateError."""
    require_own_network(record)
    before = endpoints_of(record.spec)
    after = [at for at in before if at.network != network]
    if len(after) == len(before):
        raise NotFoundError(f"is not on network {network}", subject=f"container {record.name}")
    return with_endpoints(record.spec, after)


def require_own_network(record: ContainerRecord) -> None:
    """Raises WrongStateError for one that has another's."""
    if carrier_of(record.spec) is not None:
        raise WrongStateError(SHARED_NETWORK, subject=f"container {record.name}")


def _require_supported(network: str) -> None:
    if network == "host":
        raise UnsupportedError(
            "a guest has a kernel of its own, and no way into the host's network",
            subject=f"--network {network}",
            hint="publish ports with -p, or lend it an address of this host with `hyper fip`",
        )
    if network.startswith(ANOTHERS_NETWORK):
        raise InvalidError(
            "the network of another container is a container's only one", subject=f"--network {network}"
        )


def _require_named_network(aliases: Sequence[str]) -> None:
    if aliases:
        raise InvalidError(
            "names are answered on networks of your own alone",
            subject="--network-alias",
            hint="`hyper network create NAME`, then --network NAME",
        )


def _require_address(text: str, kind: Callable[[str], object], what: str, flag: str) -> None:
    try:
        kind(text)
    except ValueError as error:
        raise InvalidError(f"is not an {what} address", subject=f"{flag} {text!r}") from error


def _require_mac(text: str) -> None:
    if not _MAC.fullmatch(text):
        raise InvalidError("is not a MAC address", subject=f"--mac-address {text!r}")
    first = int(text[:2], 16)
    if first & 1 or not int(text.replace(":", ""), 16):
        raise InvalidError("is not of one interface", subject=f"--mac-address {text}")
