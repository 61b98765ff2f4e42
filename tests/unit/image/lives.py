# SPDX-License-Identifier: Apache-2.0
"""Lives of a daemon that end anywhere, on one directory and one SQLite that outlive them.

The real pull, push, commit, save, load, removal, pruning and garbage collection; skopeo and mkfs.erofs are played. Each
waits for its turn before and after every step (a transaction, a call in a thread, a blob that arrives), so a test says
who goes on, who is cancelled, and when all is killed: nobody takes another step then. Nothing here waits for time, so
when nobody waits for a turn and somebody has not ended, he never will, and the test fails at once.
"""

import asyncio
import contextlib
import os
import random
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from hyperd.errors import ImageNotFoundError
from hyperd.host.workers import NotWantedError, Wanted
from hyperd.image import pruning, records, reference, removal
from hyperd.image.admission import Admissions
from hyperd.image.archive_index import ArchivedImage
from hyperd.image.archive_write import Saving
from hyperd.image.budget import Budget, Marks
from hyperd.image.content import Content, digest_of, hex_of
from hyperd.image.conversions import Conversions
from hyperd.image.disk import ALIGNMENT
from hyperd.image.disks import EMPTY_LAYER, Disks
from hyperd.image.flights import Hub
from hyperd.image.gc import Garbage
from hyperd.image.layer_intake import Draft
from hyperd.image.layers import SUFFIX, LayerFile
from hyperd.image.loading import ArchivePull
from hyperd.image.making import Making
from hyperd.image.manifest import Manifest
from hyperd.image.pull import Parts, Pull
from hyperd.image.push import Push, find_targets
from hyperd.image.reference import Source, Transport
from hyperd.image.transport import Remote
from hyperd.model.image import Admission, Digest, Image, NewImage, Platform, StoreUsage
from tests import images
from tests.images import file

A, B, C = [file("a", "1")], [file("b", "2")], [file("c", "3")]
BUILT = {
    "example.org/x:1": images.build([A, B]),
    "example.org/x:2": images.build([A, C]),
    "example.org/y:1": images.build([A, B], compression="zstd"),  # the same image in other blobs
    "example.org/y:2": images.build(
        [A, B], compression="none"
    ),  # and in blobs that are called like their layers
    "example.org/z:1": images.build([C], compression="none"),
    "example.org/z:2": images.build([]),  # on a layer that is always kept
}
NAMES = sorted(BUILT)
PLATFORM = Platform("linux", "amd64")
MAX_STEPS = 5000  # a life of five jobs takes some 200
_MAX_ROUNDS = 1000


class StuckError(AssertionError):
    """Somebody waits for what will never happen, or never stops."""


class Turns:
    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self.dead = False

    async def pause(self) -> None:
        if self.dead:
            raise asyncio.CancelledError
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self.waiting:
                self.waiting.remove(turn)
        if self.dead:
            raise asyncio.CancelledError

    def give(self, index: int) -> None:
        turn = self.waiting.pop(index)
        if not turn.done():
            turn.set_result(None)

    def kill(self) -> None:
        """All of it, without a last word."""
        self.dead = True
        for turn in self.waiting:
            turn.cancel()


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
        self.unlinks: Callable[[], int] = lambda: MAX_STEPS  # until it is killed

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
        return meant(remote).manifest

    async def raw_config(self, remote: Remote) -> bytes:
        await self._turns.pause()
        return meant(remote).config

    async def look_for(self, arrivals: Any) -> None:
        await self._turns.pause()
        for layer in arrivals.missing():
            if self._content.has(layer.digest):
                arrivals.whole[layer.digest].set()

    async def fetch(self, remote: Remote, arrivals: Any, layout: Path, progress: Any) -> None:
        del layout, progress
        for layer in arrivals.missing():
            await self._turns.pause()
            put(self._content.path(layer.digest), meant(remote).blobs[layer.digest])
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

    def make(self, diff_id: Digest) -> LayerFile:
        put(self.path(diff_id), b"")
        os.truncate(self.path(diff_id), ALIGNMENT)
        return LayerFile(diff_id, 1, 1)

    async def convert(self, diff_id: Digest, blob: Path, progress: Any) -> LayerFile:
        del progress
        assert blob.is_file(), "a blob went before it was converted"
        await self._turns.pause()
        assert blob.is_file(), "a blob went while it was converted"
        return self.make(diff_id)

    async def verify(self, diff_id: Digest, blob: Path, progress: Any) -> None:
        del diff_id, progress
        await self._turns.pause()
        assert blob.is_file(), "a blob went while it was read"


class FakeIntake:
    """Where a commit's layer comes in."""

    def __init__(self, workers: StepWorkers, content: Content, layers: FakeLayers) -> None:
        self._workers, self._content, self._layers = workers, content, layers
        self._tar = b""

    @contextlib.asynccontextmanager
    async def taken(self, data: AsyncIterator[bytes]) -> AsyncIterator[Draft]:
        self._tar = b"".join([chunk async for chunk in data])
        digest = digest_of(self._tar)
        await self._workers.call(len, self._tar)
        yield Draft(digest, 1, digest, len(self._tar), Path(), Path())

    async def keep(self, draft: Draft) -> LayerFile:
        def publish(_: Wanted) -> LayerFile:
            if not self._content.has(draft.blob_digest):
                put(self._content.path(draft.blob_digest), self._tar)
            return self._layers.make(draft.diff_id)

        return cast("LayerFile", await self._workers.call_while_wanted(publish))


def meant(remote: Remote) -> images.BuiltImage:
    return BUILT[remote.source.path or str(remote.source)]


def put(path: Path, data: bytes) -> None:
    temporary = path.with_name(".tmp")
    temporary.write_bytes(data)
    temporary.rename(path)


class FakeAdmissions(Admissions):
    """Lets everything in, after a while."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    async def admit(self, remote: Remote, manifest: Digest, subject: str) -> Admission:
        await self._turns.pause()
        return Admission(subject, manifest, str(remote.source), (), datetime.fromtimestamp(0, UTC))


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


async def settle() -> None:
    """Until everyone waits for a turn: nothing else is ready to run."""
    loop: Any = asyncio.get_running_loop()
    await asyncio.sleep(0)
    for _ in range(_MAX_ROUNDS):
        if not loop._ready:
            return
        await asyncio.sleep(0)
    raise StuckError("somebody goes on and on without a step")


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
