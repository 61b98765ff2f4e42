# SPDX-License-Identifier: Apache-2.0
"""A commit or an import that is cancelled while a thread still works with its files."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hyperd.host.workers import Workers
from hyperd.image.content import Content
from hyperd.image.layer_intake import Intake
from hyperd.image.stream import Limits
from hyperd.image.unpack import Unpacker
from tests import images
from tests.contract.image.test_layers import layers_in
from tests.images import file
from tests.mounts import names_in

TAR = images.layer_tar([file("a", "one")])


class GatedWorkers(Workers):
    """One function, by its name, begins only when the test says so."""

    def __init__(self, name: str) -> None:
        super().__init__("gated", 2)
        self._name = name
        self.begun, self.gate, self.ended = asyncio.Event(), threading.Event(), threading.Event()

    async def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().call(self._gated(function), *args, **kwargs)

    async def call_to_the_end(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().call_to_the_end(self._gated(function), *args, **kwargs)

    def _gated(self, function: Any) -> Callable[..., Any]:
        if getattr(function, "__name__", "") != self._name:
            return function  # type: ignore[no-any-return]
        loop = asyncio.get_running_loop()

        def waiting(*args: Any, **kwargs: Any) -> Any:
            loop.call_soon_threadsafe(self.begun.set)
            assert self.gate.wait(30)
            try:
                return function(*args, **kwargs)
            finally:
                self.ended.set()

        return waiting


async def _chunks() -> AsyncIterator[bytes]:
    yield TAR


async def _cancelled_while(workers: GatedWorkers, work: Any) -> None:
    """It is not over before the thread is."""
    task = asyncio.create_task(work)
    await asyncio.wait_for(workers.begun.wait(), 30)
    task.cancel()
    await asyncio.wait({task}, timeout=0.05)
    assert not task.done(), "its files are closed while a thread writes to them"
    workers.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers.ended.is_set()


async def test_a_commit_that_is_cancelled_at_its_end_waits_for_the_one_who_stamps_its_file(tmp_path: Path):
    layers = layers_in(tmp_path)
    intake = Intake(layers, Content(tmp_path), tmp_path / "tmp")
    workers = GatedWorkers("stamp")
    intake._threads.close()
    intake._threads = workers

    async def take() -> None:
        async with intake.taken(_chunks()):
            raise AssertionError("it was cancelled before")

    try:
        await _cancelled_while(workers, take())
        assert names_in(tmp_path / "tmp") == []
    finally:
        intake.close()
        layers.close()


async def test_an_import_that_is_cancelled_waits_for_the_one_who_writes_it_aside(tmp_path: Path):
    workers = GatedWorkers("_write")
    unpacker = Unpacker(tmp_path, workers, Limits(1 << 30, 1), stall_timeout_s=30)

    async def packed() -> AsyncIterator[bytes]:
        yield b"\x1f\x8b" + bytes(100)

    async def read() -> None:
        async for _ in unpacker.plain(packed()):
            raise AssertionError("it was cancelled before")

    try:
        await _cancelled_while(workers, read())
        assert names_in(tmp_path) == []
    finally:
        workers.close()
