# SPDX-License-Identifier: Apache-2.0
"""Whatever happens at once, and wherever it is killed: no image loses a byte, and no byte is left that nobody owns.

The real pull, push, removal, pruning and garbage collection, on a real directory and a real SQLite; between any two of
their steps chance says who goes on, who is cancelled, and when the daemon is killed.
"""

import asyncio
import contextlib
import os
import random
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperd.errors import ImageNotFoundError
from hyperd.host.workers import NotWantedError, Wanted
from hyperd.image import pruning, records, reference, removal
from hyperd.image.content import Content, hex_of
from hyperd.image.disk import ALIGNMENT
from hyperd.image.disks import EMPTY_LAYER, Disks
from hyperd.image.flights import Flights, Hub
from hyperd.image.gc import Garbage
from hyperd.image.layers import SUFFIX, LayerFile
from hyperd.image.manifest import Manifest, parse_manifest
from hyperd.image.pull import Parts, Pull
from hyperd.image.push import Push, find_targets
from hyperd.image.transport import Remote
from hyperd.model.image import Digest, ImageId, Platform
from tests import images
from tests.images import file

A, B, C = [file("a", "1")], [file("b", "2")], [file("c", "3")]
BUILT = {
    "example.org/x:1": images.build([A, B]),
    "example.org/x:2": images.build([A, C]),
    "example.org/y:1": images.build([A, B], compression="zstd"),  # the same image in other blobs
    "example.org/z:1": images.build([C], compression="none"),  # a blob that is called like its layer
}
NAMES = sorted(BUILT)


class Turns:
    """Everyone waits for his turn before and after each step; ``kill`` ends all of it without a last word."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self.dead = False

    async def pause(self) -> None:
        if self.dead:
            raise asyncio.CancelledError
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn
        if self.dead:
            raise asyncio.CancelledError


class StepDatabase:
    def __init__(self, connection: sqlite3.Connection, turns: Turns) -> None:
        self._connection, self._turns = connection, turns

    async def transaction(self, work: Any, *, lasting: bool = False) -> Any:
        del lasting
        await self._turns.pause()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        await self._turns.pause()
        return result


class Interrupted(Wanted):
    """Killed between two unlinks."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps

    def require(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise NotWantedError


class StepWorkers:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.unlinks: Any = lambda: 99  # until it is killed

    async def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        await self._turns.pause()
        result = function(*args, **kwargs)
        await self._turns.pause()
        return result

    async def call_while_wanted(self, function: Any, *args: Any) -> Any:
        """Waited for to its end, as the real one: cancelled before it, or after it."""
        await self._turns.pause()
        try:
            return function(Interrupted(self.unlinks()), *args)
        except NotWantedError:
            raise asyncio.CancelledError from None


class FakeRegistry:
    """What skopeo would bring: blobs, one after the other."""

    def __init__(self, content: Content, turns: Turns) -> None:
        self._content, self._turns = content, turns

    async def raw_manifest(self, remote: Remote) -> bytes:
        await self._turns.pause()
        return BUILT[str(remote.source)].manifest

    async def raw_config(self, remote: Remote) -> bytes:
        await self._turns.pause()
        return BUILT[str(remote.source)].config

    async def look_for(self, arrivals: Any) -> None:
        await self._turns.pause()
        for layer in arrivals.missing():
            if self._content.has(layer.digest):
                arrivals.whole[layer.digest].set()

    async def fetch(self, remote: Remote, arrivals: Any, layout: Path, progress: Any) -> None:
        del layout, progress
        for layer in arrivals.missing():
            await self._turns.pause()
            put(self._content.path(layer.digest), BUILT[str(remote.source)].blobs[layer.digest])
            arrivals.whole[layer.digest].set()

    async def send(self, remote: Remote, digest: Digest, manifest: Manifest, tell: Any) -> int:
        del remote, tell
        for each in (manifest.config, *manifest.layers):
            await self._turns.pause()
            assert self._content.has(digest), "a manifest went while it was pushed"
            assert self._content.has(each.digest), "a blob went while it was pushed"
        return 1


class FakeLayers:
    def __init__(self, root: Path, turns: Turns) -> None:
        self.root, self._turns = root, turns

    def path(self, diff_id: Digest) -> Path:
        return self.root / f"{hex_of(diff_id)}{SUFFIX}"

    def has(self, diff_id: Digest) -> bool:
        return self.path(diff_id).is_file()

    async def convert(self, diff_id: Digest, blob: Path, progress: Any) -> LayerFile:
        del progress
        assert blob.is_file(), "a blob went before it was converted"
        await self._turns.pause()
        put(self.path(diff_id), b"")
        os.truncate(self.path(diff_id), ALIGNMENT)
        return LayerFile(diff_id, 1, 1)


def put(path: Path, data: bytes) -> None:
    temporary = path.with_name(".tmp")
    temporary.write_bytes(data)
    temporary.rename(path)


class Daemon:
    """One life of it; the directory and the connection outlive it."""

    def __init__(self, root: Path, connection: sqlite3.Connection, tasks: asyncio.TaskGroup) -> None:
        self.turns = Turns()
        self.connection = connection
        self.content = Content(root)
        self.layers = cast("Any", FakeLayers(root / "layers", self.turns))
        self.disks = Disks(root / "disks", self.layers)
        self.database = cast("Any", StepDatabase(connection, self.turns))
        self.workers = cast("Any", StepWorkers(self.turns))
        self.garbage = Garbage(
            self.database, self.workers, self.content, self.layers, self.disks.root, frozenset({EMPTY_LAYER})
        )
        self.registry = cast("Any", FakeRegistry(self.content, self.turns))
        self.parts = Parts(
            self.database, self.workers, self.content, self.registry, self.registry, self.layers, self.disks,
            self.garbage, Flights(tasks), root / "tmp",
        )  # fmt: skip

    async def pull(self, name: str) -> None:
        remote = Remote(reference.parse_source(name), Platform("linux", "amd64"))
        await Pull(self.parts, remote, Hub()).run()

    async def push(self, name: str) -> None:
        targets = await self.database.transaction(lambda each: find_targets(each, name, all_tags=False))
        remote = Remote(reference.parse_source(name), Platform("linux", "amd64"))
        await Push(self.parts, self.registry, Hub()).run(targets, remote)

    async def tag(self, name: str) -> None:
        """Over the next one's name."""
        other = reference.parse_target(NAMES[(NAMES.index(name) + 1) % len(NAMES)])
        await self.database.transaction(lambda each: removal.tag(each, name, other))

    async def remove(self, name: str) -> None:
        await self.database.transaction(lambda each: removal.remove(each, name, force=True, in_use={}))
        await self.garbage.sweep()

    async def prune(self, name: str) -> None:
        choice = pruning.parse_choice([], everything=name < "example.org/y", now=datetime.now(UTC))
        await self.database.transaction(lambda each: pruning.prune(each, choice, {}))
        await self.garbage.sweep()

    async def commit(self, name: str) -> None:
        """As a commit does: files under pins, then the records."""
        built = BUILT[name]
        manifest = parse_manifest(built.manifest, "x")
        assert isinstance(manifest, Manifest)
        layers = list(map(Digest, built.diff_ids))
        new = records.NewImage(
            ImageId(built.image_id), Digest(built.manifest_digest), manifest, built.config, tuple(layers), ()
        )
        async with self.garbage.pinned(
            [
                *layers,
                *map(Digest, built.blobs),
                Digest(built.manifest_digest),
            ]
        ):
            for digest, data in {**built.blobs, built.manifest_digest: built.manifest}.items():
                await self.workers.call(put, self.content.path(Digest(digest)), data)
            for diff_id in layers:
                made = await self.layers.convert(diff_id, self.content.path(Digest(built.image_id)), None)
                await self.database.transaction(lambda each, made=made: records.save_layer(each, made))
            await self.workers.call(self.disks.make, new.image_id, layers)
            await self.database.transaction(lambda each: records.save_image(each, new))

    async def root_disk(self, name: str) -> None:
        def find(connection: sqlite3.Connection) -> Any:
            return records.get_image(connection, records.find_id(connection, name))

        image = await self.database.transaction(find)
        async with self.garbage.pinned([Digest(image.image_id), *image.diff_ids]):
            await self.database.transaction(lambda each: records.get_image(each, image.image_id))
            await self.workers.call_while_wanted(lambda _: self.disks.make(image.image_id, image.diff_ids))

    def owned(self) -> set[str]:
        """Every file that an image needs, all of which are there."""
        needed: set[str] = set()
        for image_id in records.list_ids(self.connection):
            image = records.get_image(self.connection, image_id)
            blobs = records.blobs_of(self.connection, image_id)
            paths = [
                *(self.content.path(digest) for digest in blobs),
                *(self.layers.path(digest) for digest in image.diff_ids),
                self.disks.path(image_id).parent,
            ]
            assert all(path.exists() for path in paths), f"{image_id} has lost something"
            assert self.disks.path(image_id).is_file()
            assert image.size_bytes == len(image.diff_ids), "a layer is not on record"
            needed |= set(map(str, paths))
        return needed

    def there(self) -> set[str]:
        directories = (self.content.shared_blob_dir / "sha256", self.layers.root, self.disks.root)
        return {str(path) for directory in directories for path in directory.iterdir()}


async def settle() -> None:
    """Until everyone waits for a turn: nothing else is ready to run."""
    ready: Any = asyncio.get_running_loop()
    await asyncio.sleep(0)
    while ready._ready:
        await asyncio.sleep(0)


async def live(
    daemon: Daemon, jobs: list[tuple[str, str]], tasks: asyncio.TaskGroup, chance: random.Random
) -> bool:
    """True when all went to its end by itself."""

    async def run(verb: str, name: str) -> None:
        with contextlib.suppress(ImageNotFoundError, asyncio.CancelledError):
            await getattr(daemon, verb)(name)

    undisturbed = True
    running = [tasks.create_task(run(verb, name)) for verb, name in jobs]
    await settle()
    while daemon.turns.waiting:
        choice = chance.randrange(41)
        if choice == 40:
            undisturbed = False
            victim = chance.randrange(len(running))
            running[victim].cancel()
        elif choice == 39:
            undisturbed = False
            daemon.turns.dead = True
            for task in running:
                task.cancel()
            for turn in daemon.turns.waiting:
                turn.cancel()
            break
        else:
            turn = daemon.turns.waiting.pop(choice % len(daemon.turns.waiting))
            if not turn.done():
                turn.set_result(None)
        await settle()
        daemon.owned()
    await settle()
    assert all(task.done() for task in running)
    return undisturbed


async def finish(daemon: Daemon, *calls: Any) -> None:
    """Alone, one step after the other."""

    async def do() -> None:
        for call in calls:
            await call()

    task = asyncio.ensure_future(do())
    while not task.done():
        await settle()
        while daemon.turns.waiting:
            turn = daemon.turns.waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
            await settle()
    await task


@contextlib.asynccontextmanager
async def place() -> AsyncIterator[tuple[Path, sqlite3.Connection]]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:  # thousands of fsyncs
        root = Path(made)
        for name in ("blobs/sha256", "layers", "disks", "tmp"):
            (root / name).mkdir(parents=True)
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        for statement in records.MIGRATIONS:
            connection.execute(statement)
        yield root, connection
        connection.close()


VERBS = ["pull", "pull", "push", "tag", "remove", "remove", "prune", "commit", "root_disk"]
JOBS = st.lists(st.tuples(st.sampled_from(VERBS), st.sampled_from(NAMES)), min_size=1, max_size=5)


@settings(
    deadline=None,
    max_examples=int(os.environ.get("HYPER_GARBAGE_EXAMPLES", "25")),
    suppress_health_check=list(HealthCheck),
)
@given(lives=st.lists(JOBS, min_size=1, max_size=3), seed=st.integers(0, 1 << 32))
async def test_no_image_loses_anything_and_nothing_is_left_unowned(lives, seed):
    chance = random.Random(seed)
    async with place() as (root, connection):
        for jobs in lives:
            async with asyncio.TaskGroup() as tasks:
                daemon = Daemon(root, connection, tasks)
                await finish(daemon, lambda daemon=daemon: Daemon.pull(daemon, NAMES[0]))
                before = daemon.there() - daemon.owned()
                daemon.workers.unlinks = lambda: chance.choice([99, 99, 99, 0, 1, 2])
                undisturbed = await live(daemon, jobs, tasks, chance)
                if (
                    undisturbed
                    and not before
                    and not connection.execute("SELECT 1 FROM image_garbage").fetchone()
                ):
                    assert daemon.there() == daemon.owned()
        async with asyncio.TaskGroup() as tasks:
            daemon = Daemon(root, connection, tasks)
            await finish(daemon, daemon.garbage.sweep)
            assert not connection.execute("SELECT 1 FROM image_garbage").fetchall()
            await finish(daemon, lambda: daemon.garbage.sweep_older_than(-1))
            assert daemon.there() == daemon.owned()
