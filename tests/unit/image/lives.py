# SPDX-License-Identifier: Apache-2.0
"""Lives of a daemon that end anywhere, on one directory and one SQLite that outlive them.

The real pull, push, commit, save, load, removal, pruning and garbage collection; skopeo and mkfs.erofs are played. Each
waits for its turn before and after every step (a transaction, a call in a thread, a blob that arrives), so a test says
who goes on, who is cancelled, and when all is killed: nobody takes another step then. Nothing here waits for time, so
when nobody waits for a turn and somebody has not ended, he never will, and the test fails at once.
"""

import asyncio
import contextlib
import random
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from hyperd.errors import ImageNotFoundError
from hyperd.image import pruning, records, reference, removal
from hyperd.image.archive_index import ArchivedImage
from hyperd.image.archive_write import Saving
from hyperd.image.budget import Budget, Marks
from hyperd.image.content import Content
from hyperd.image.conversions import Conversions
from hyperd.image.disks import EMPTY_LAYER, Disks
from hyperd.image.flights import Hub
from hyperd.image.gc import Garbage
from hyperd.image.loading import ArchivePull
from hyperd.image.making import Making
from hyperd.image.pull import Parts, Pull
from hyperd.image.push import Push, find_targets
from hyperd.image.reference import Source, Transport
from hyperd.image.transport import Remote
from hyperd.model.image import Digest, Image, NewImage, StoreUsage
from tests import images
from tests.unit.image.played import (
    BUILT,
    MAX_STEPS,
    NAMES,
    PLATFORM,
    C,
    FakeAdmissions,
    FakeIntake,
    FakeLayers,
    FakeRegistry,
    StepDatabase,
    StepWorkers,
    StuckError,
    Turns,
    settle,
)


class Daemon:
    """One life of it; the directory and the connection outlive it. Verbs are of an image's name."""

    def __init__(self, root: Path, connection: sqlite3.Connection, tasks: asyncio.TaskGroup) -> None:
        self.turns = Turns()
        self.tasks = tasks
        self.connection = connection
        self.content = Content(root)
        layers = FakeLayers(root / "layers", self.turns)
        self.layers = cast("Any", layers)
        self.disks = Disks(root / "disks", self.layers)
        self.database = cast("Any", StepDatabase(connection, self.turns))
        self.workers = cast("Any", StepWorkers(self.turns))
        self.garbage = Garbage(
            self.database, self.workers, self.content, self.layers, self.disks.root, frozenset({EMPTY_LAYER})
        )
        self.registry = cast("Any", FakeRegistry(self.content, self.turns))
        conversions = Conversions(self.database, self.workers, self.content, self.layers, self.garbage, tasks)
        self.parts = Parts(
            self.database, self.workers, self.content, self.registry, FakeAdmissions(self.turns),
            self.registry, self.layers, self.disks, self.garbage, conversions, root / "tmp",
        )  # fmt: skip
        self._intake = cast("Any", lambda: FakeIntake(self.workers, self.content, layers))

    async def pull(self, name: str) -> Image:
        return await Pull(self.parts, Remote(reference.parse_source(name), PLATFORM), Hub()).run()

    async def load(self, name: str) -> None:
        built = BUILT[name]
        blobs = {Digest(each): cast("Any", None) for each in built.layer_digests}
        names = (reference.parse_named(name),)
        diff_ids = tuple(map(Digest, built.diff_ids))
        image = ArchivedImage(built.manifest, built.media_type, built.config, diff_ids, blobs, names)
        remote = Remote(Source(Transport.OCI, None, name), PLATFORM)
        try:
            await ArchivePull(self.parts, remote, Hub(), image).run()
        finally:
            await self.garbage.sweep(image.digests)

    async def push(self, name: str) -> None:
        targets = await self.database.transaction(lambda each: find_targets(each, name, all_tags=False))
        remote = Remote(reference.parse_source(name), PLATFORM)
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
        if name > "example.org/y":
            await self.garbage.sweep_older_than(-1)

    async def evict(self, name: str) -> None:
        """A budget that has room for nothing; one image is in use."""

        async def measure() -> StoreUsage:
            return StoreUsage((), 10, 0)

        async def free() -> int:
            return 0

        async def sweep(_: removal.Removed) -> int:
            await self.garbage.sweep()
            return 1

        budget = Budget(Marks(1, 0), self.database, measure, free, sweep, fresh_s=-1e9)
        kept = await self.database.transaction(lambda each: records.find_id(each, name))
        budget.in_use = lambda: {kept: "a container"}
        await budget.keep()

    async def commit(self, name: str) -> None:
        """A layer that only this has, on the image."""
        base = await self.database.transaction(lambda each: records.find_id(each, name))
        await Making(self.parts, self._intake(), stall_timeout_s=60).commit(
            base, stream(b"commit"), NewImage(name)
        )

    async def import_root(self, name: str) -> None:
        """A layer that others have, too."""
        new = NewImage(name, platform=PLATFORM)
        await Making(self.parts, self._intake(), stall_timeout_s=60).make_on_nothing(
            stream(images.layer_tar(C)), new
        )

    async def save(self, name: str) -> None:
        async with contextlib.aclosing(Saving(self.parts).save([name])) as chunks:
            async for _ in chunks:
                await self.turns.pause()

    async def root_disk(self, name: str) -> None:
        def find(connection: sqlite3.Connection) -> Any:
            return records.get_image(connection, records.find_id(connection, name))

        image = await self.database.transaction(find)
        async with self.garbage.pinned([Digest(image.image_id), *image.diff_ids]):
            await self.database.transaction(lambda each: records.get_image(each, image.image_id))
            await self.workers.call_while_wanted(lambda _: self.disks.make(image.image_id, image.diff_ids))
            for _ in range(3):
                await self.turns.pause()
                assert self.disks.path(image.image_id).is_file(), "a disk went before it was used"
                assert self.disks.has_all(image.diff_ids), "a layer went before it was used"

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
            lost = [str(path) for path in paths if not path.exists()]
            assert not lost, f"{image_id} has lost {lost}"
            assert self.disks.has_all(image.diff_ids)
            assert self.disks.path(image_id).is_file()
            assert image.size_bytes == len(image.diff_ids), "a layer is not on record"
            needed |= set(map(str, paths))
        return needed

    def there(self) -> set[str]:
        directories = (self.content.shared_blob_dir / "sha256", self.layers.root, self.disks.root)
        always = {self.content.path(EMPTY_LAYER), self.layers.path(EMPTY_LAYER)}
        return {str(path) for directory in directories for path in directory.iterdir() if path not in always}

    def marks(self) -> set[str]:
        return {row[0] for row in self.connection.execute("SELECT digest FROM image_garbage")}

    async def alone(self, *calls: Callable[[], Awaitable[Any]]) -> None:
        """One after the other, every step at once."""

        async def do() -> BaseException | None:
            try:
                for call in calls:
                    await call()
            except BaseException as error:  # noqa: BLE001  # the caller raises it; the group must not
                return error
            return None

        task = self.tasks.create_task(do())
        for _ in range(MAX_STEPS):
            await settle()
            if not self.turns.waiting:
                break
            self.turns.give(0)
        if not task.done():
            raise StuckError(str(calls))
        error = await task
        if error is not None:
            raise error

    async def steps(self, count: int) -> None:
        """Of whoever waits longest."""
        await settle()
        for _ in range(count):
            if not self.turns.waiting:
                return
            self.turns.give(0)
            await settle()

    async def meanwhile(self, call: Callable[[], Awaitable[Any]]) -> None:
        """While all others stand still: to its end, or to where it waits for one of them."""

        async def do() -> None:
            await call()

        kept, self.turns.waiting = self.turns.waiting, []
        self.tasks.create_task(do())
        await self.steps(MAX_STEPS)
        self.turns.waiting += kept

    async def all_at_once(
        self, jobs: list[tuple[str, str]], chance: random.Random, *, cancels: float, kill_at: int | None
    ) -> None:
        """``cancels``: how probably, at each step, somebody is. No step may harm an image that is on record."""
        running = [self.tasks.create_task(self._try(verb, name)) for verb, name in jobs]
        await settle()
        for step in range(MAX_STEPS):
            if not self.turns.waiting:
                break
            if step == kill_at:
                self.turns.kill()
                for task in running:
                    task.cancel()
            elif chance.random() < cancels:
                chance.choice(running).cancel()
            else:
                self.turns.give(chance.randrange(len(self.turns.waiting)))
            await settle()
            self.owned()
        if not all(task.done() for task in running):
            raise StuckError(f"{jobs}: {[task for task in running if not task.done()]}")

    async def _try(self, verb: str, name: str) -> None:
        try:
            await getattr(self, verb)(name)
        except asyncio.CancelledError:
            pass
        except ImageNotFoundError:
            made_here = ("pull", "load", "import_root", "prune")
            assert verb not in made_here, "what is made here cannot be missing"


async def stream(tar: bytes) -> AsyncGenerator[bytes, None]:
    yield tar


class Place:
    """What outlives a daemon."""

    def __init__(self, root: Path, connection: sqlite3.Connection) -> None:
        self.root, self.connection = root, connection

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Daemon]:
        """When a test fails within, the rest of the daemon is killed, or it would wait for its turn for ever."""
        async with asyncio.TaskGroup() as tasks:
            daemon = Daemon(self.root, self.connection, tasks)
            try:
                yield daemon
            except BaseException:
                daemon.turns.kill()
                raise


@contextlib.contextmanager
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:  # thousands of fsyncs
        root = Path(made)
        for name in ("blobs/sha256", "layers", "disks", "tmp"):
            (root / name).mkdir(parents=True)
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            for statement in records.MIGRATIONS:
                connection.execute(statement)
            yield Place(root, connection)


@contextlib.asynccontextmanager
async def one_life() -> AsyncIterator[Daemon]:
    with place() as here:
        async with here.opened() as daemon:
            yield daemon
