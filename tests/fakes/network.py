# SPDX-License-Identifier: Apache-2.0
"""A network of addresses without wires; satisfies hyperd.network.base.Network."""

import asyncio
from ipaddress import IPv4Network

from hyperd.errors import ExhaustedError, HyperError
from hyperd.model.network import Attachment
from hyperd.model.vm import SandboxId


class FakeNetwork:
    """``leases`` outlive ``taps``, as the real ones do."""

    def __init__(self, subnet: str = "10.99.0.0/24") -> None:
        self.subnet = IPv4Network(subnet)
        self.leases: dict[SandboxId, str] = {}
        self.taps: set[SandboxId] = set()
        self.prepared = 0
        self.trouble: HyperError | None = None
        self.fail_next_prepare: HyperError | None = None
        self.fail_next_attach: HyperError | None = None
        self.fail_next_release: HyperError | None = None
        self.gate = asyncio.Event()  # attach waits for it
        self.gate.set()
        self.attaching: set[SandboxId] = set()
        self._last = 1

    async def prepare(self) -> None:
        self.trouble, self.fail_next_prepare = self.fail_next_prepare, None
        if self.trouble is not None:
            raise self.trouble
        self.prepared += 1

    async def attach(self, sandbox_id: SandboxId) -> Attachment:
        self.attaching.add(sandbox_id)
        try:
            await self.gate.wait()
        finally:
            self.attaching.discard(sandbox_id)
        error, self.fail_next_attach = self.fail_next_attach, None
        if error is not None:
            raise error
        address = self.leases.get(sandbox_id) or self._next_address()
        self.leases[sandbox_id] = address
        self.taps.add(sandbox_id)
        return Attachment(
            sandbox_id=sandbox_id,
            network="bridge",
            tap=f"hyt{sandbox_id}"[:15],
            mac="0a:48:" + ":".join(f"{int(part):02x}" for part in address.split(".")),
            address=address,
            prefix_length=self.subnet.prefixlen,
            gateway=str(self.subnet[1]),
            mtu=1500,
            dns_servers=("192.0.2.53",),
            dns_searches=(),
            dns_options=(),
        )

    async def detach(self, sandbox_id: SandboxId) -> None:
        self.taps.discard(sandbox_id)

    async def release(self, sandbox_id: SandboxId) -> None:
        error, self.fail_next_release = self.fail_next_release, None
        if error is not None:
            raise error
        self.taps.discard(sandbox_id)
        self.leases.pop(sandbox_id, None)

    async def list_attached(self) -> set[SandboxId]:
        return self.taps | set(self.leases)

    def close(self) -> None:
        """Nothing to end."""

    def _next_address(self) -> str:
        taken = set(self.leases.values())
        size = self.subnet.num_addresses
        for step in range(1, size):
            number = (self._last + step) % size
            address = str(self.subnet[number])
            if number not in (0, 1, size - 1) and address not in taken:
                self._last = number
                return address
        raise ExhaustedError("all addresses are leased", subject=str(self.subnet))
