# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the link: a serial port that one host at a time has, and the connections on it.

Like a serial port it keeps what was under way for whoever comes next.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

READ_BYTES = 32 * 1024
QUEUED_READS = 4
OPENING = b"HYPER1"


class AgentLink:
    """The agent's side of docs/agent-protocol.md, written apart from hyperd's: byte by byte, as the page says it."""

    def __init__(self) -> None:
        self._frame: bytearray | None = None  # after a flag; None: skipping or in data
        self._in_data = False
        self._escaped = False

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """("cut", b""), ("open", nonce) and ("data", bytes), in order."""
        plain = bytearray()
        for byte in data:
            if byte == 0x7E:
                if plain:
                    yield "data", bytes(plain)
                    plain.clear()
                frame, self._frame = self._frame, bytearray()
                if frame is not None and len(frame) == 38 and frame.startswith(OPENING):
                    self._frame, self._in_data, self._escaped = None, True, False
                    yield "open", bytes(frame[6:])
                elif self._in_data:
                    self._in_data = False
                    yield "cut", b""
            elif self._frame is not None:
                self._frame.append(byte)
            elif self._in_data and self._escaped:
                self._escaped = False
                plain.append({0x5E: 0x7E, 0x5D: 0x7D}[byte])
            elif self._in_data and byte == 0x7D:
                self._escaped = True
            elif self._in_data:
                plain.append(byte)
        if plain:
            yield "data", bytes(plain)


def link_escape(data: bytes) -> bytes:
    return data.replace(b"\x7d", b"\x7d\x5d").replace(b"\x7e", b"\x7d\x5e")


class FakePort:
    """A virtio-serial port: QEMU's socket outside, the agent's HTTP/2 server inside."""

    def __init__(self, path: Path, backend: Path) -> None:
        self.path = path
        self.openings = 0
        self.is_mute = False  # the guest never opens the port
        self._backend = backend
        self._link = AgentLink()
        self._out: asyncio.Queue[bytes] = asyncio.Queue(QUEUED_READS)
        self._inner: asyncio.StreamWriter | None = None
        self._pump: asyncio.Task[None] | None = None
        self._host: socket.socket | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind(str(self.path))
            listener.listen(1)
            try:
                while True:
                    host, _ = await loop.sock_accept(listener)
                    with host:
                        await self._serve(host)
            finally:
                await self._cut()

    def send_raw(self, data: bytes) -> None:
        """Bytes to the host beside the protocol."""
        self._out.put_nowait(data)

    def hang_up(self) -> None:
        """QEMU goes away under the connection."""
        if self._host is not None:
            with contextlib.suppress(OSError):
                self._host.shutdown(socket.SHUT_RDWR)

    async def _serve(self, host: socket.socket) -> None:
        self._host = host
        reading = asyncio.create_task(self._read(host))
        writing = asyncio.create_task(self._write(host))
        try:
            await reading
        except OSError:
            pass
        finally:
            self._host = None
            writing.cancel()
            reading.cancel()
            await asyncio.wait([reading, writing])

    async def _write(self, host: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                await asyncio.get_running_loop().sock_sendall(host, await self._out.get())

    async def _read(self, host: socket.socket) -> None:
        while data := await asyncio.get_running_loop().sock_recv(host, READ_BYTES):
            if self.is_mute:
                continue
            for event, payload in self._link.feed(data):
                if event == "data":
                    await self._deliver(payload)
                else:
                    await self._cut()
                if event == "open":
                    self.openings += 1
                    await self._out.put(b"~" + OPENING + payload + b"~")
                    await self._open()

    async def _open(self) -> None:
        reader, self._inner = await asyncio.open_unix_connection(str(self._backend))
        self._pump = asyncio.create_task(self._pump_out(reader))

    async def _deliver(self, data: bytes) -> None:
        if self._inner is not None:
            with contextlib.suppress(OSError):
                self._inner.write(data)
                await self._inner.drain()

    async def _pump_out(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                await self._out.put(link_escape(data))

    async def _cut(self) -> None:
        pump, inner, self._pump, self._inner = self._pump, self._inner, None, None
        if pump is not None and inner is not None:
            pump.cancel()
            await asyncio.wait([pump])
            inner.close()
            with contextlib.suppress(OSError):
                await inner.wait_closed()
