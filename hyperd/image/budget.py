# SPDX-License-Identifier: Apache-2.0
"""A limit for the store: past the high mark unused images go, the longest unused first, down to the low mark.

    something came in --> taken > high mark --> unused images go until taken <= low mark
    a pull needs more than is free          --> unused images go until it fits

One in use, or used within the last ten minutes (pulled, made, asked for, started from), stays, whatever the marks say.
When an image was used is kept in memory and written down when something has to go, and at the end: a kill costs the
order.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from hyperd.host.database import Database
from hyperd.image import records, removal
from hyperd.model.image import BudgetUsage, Image, ImageId, Removal, StoreUsage

log = logging.getLogger(__name__)

FRESH_S = 600.0
LOW_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Marks:
    """0: no budget. Raises ValueError for a low mark above the high one."""

    high_bytes: int = 0
    low_bytes: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.low_bytes <= self.high_bytes:
            raise ValueError("the low mark is above the high mark")


NO_BUDGET = Marks()


class Budget:
    """``sweep`` deletes what a removal has left and tells the bytes; ``free`` those that the file system has."""

    def __init__(
        self,
        marks: Marks,
        database: Database,
        measure: Callable[[], Awaitable[StoreUsage]],
        free: Callable[[], Awaitable[int]],
        sweep: Callable[[removal.Removed], Awaitable[int]],
        *,
        fresh_s: float = FRESH_S,
    ) -> None:
        self._fresh_s = fresh_s
        self._lock = (
            asyncio.Lock()
        )  # of two that came in together the second one looks at what the first has left
        self._marks = marks
        self._database = database
        self._measure = measure
        self._free = free
        self._sweep = sweep
        self._used: dict[ImageId, float] = {}
        self._removed = self._removed_bytes = 0
        self.in_use: Callable[[], Mapping[ImageId, str]] = dict

    @property
    def usage(self) -> BudgetUsage:
        marks = self._marks
        return BudgetUsage(marks.high_bytes, marks.low_bytes, self._removed, self._removed_bytes)

    def touch(self, image_id: ImageId) -> None:
        """From any thread: in the transaction that finds the image, so that none comes between that removes it."""
        if self._marks.high_bytes:
            self._used[image_id] = time.time()

    async def keep(self) -> None:
        """After something has come in."""
        if not self._marks.high_bytes:
            return
        async with self._lock:
            taken = (await self._measure()).layers_bytes
            if taken > self._marks.high_bytes:
                await self._remove_until(lambda freed: taken - freed <= self._marks.low_bytes)

    async def make_room(self, need_bytes: int) -> None:
        """Before a pull; what cannot be had is the pull's to say."""
        if not self._marks.high_bytes:
            return
        async with self._lock:
            missing = need_bytes - await self._free()
            if missing > 0:
                await self._remove_until(lambda freed: freed >= missing)

    async def write_down(self) -> None:
        """When images were used, for the next daemon."""
        used, self._used = self._used, {}
        try:
            await self._database.transaction(lambda connection: save_uses(connection, used))
        except BaseException:
            for image_id, when in used.items():
                self._used.setdefault(image_id, when)
            raise

    async def _remove_until(self, is_enough: Callable[[int], bool]) -> None:
        freed = 0
        await self.write_down()
        while not is_enough(freed):
            removed = await self._database.transaction(self._oldest())
            if removed is None:
                log.warning("images in use take more than their budget", extra={"freed_bytes": freed})
                return
            image, gone = removed
            got = await self._sweep(gone)
            freed += got
            self._removed += 1
            self._removed_bytes += got
            log.info(
                "image removed for the budget",
                extra={"image": image.image_id, "tags": " ".join(image.tags), "freed_bytes": got},
            )

    def _oldest(self) -> Callable[[sqlite3.Connection], tuple[Image, removal.Removed] | None]:
        """In one transaction: which one it is, and its end."""
        users = self.in_use()
        before = time.time() - self._fresh_s

        def remove(connection: sqlite3.Connection) -> tuple[Image, removal.Removed] | None:
            # With those that somebody has asked for since the order was written down: a container may be about to have
            # one. Looked at here and not before: whoever got an image has touched it in a transaction of his own.
            in_use = {**users, **dict.fromkeys(list(self._used), "somebody")}
            image_id = choose(last_uses(connection), in_use, before)
            if image_id is None:
                return None
            image = records.get_image(connection, image_id)
            deleted = removal.delete(connection, image)
            return image, removal.Removed(Removal((*image.tags, *image.digests), deleted), (image_id,))

        return remove


def choose(
    uses: Iterable[tuple[ImageId, float]], in_use: Mapping[ImageId, str], before: float
) -> ImageId | None:
    """The one that has been unused longest, and longer than ``before``."""
    candidates = ((when, image_id) for image_id, when in uses if image_id not in in_use and when < before)
    return min(candidates, default=(0.0, None))[1]


def save_uses(connection: sqlite3.Connection, uses: Mapping[ImageId, float]) -> None:
    """Times of images that are gone are left out."""
    connection.executemany(
        "INSERT OR REPLACE INTO image_use SELECT image_id, ? FROM image WHERE image_id = ?",
        [(used_at, image_id) for image_id, used_at in uses.items()],
    )


def last_uses(connection: sqlite3.Connection) -> list[tuple[ImageId, float]]:
    """Of one that was never used since it came: when it came."""
    rows = connection.execute(
        "SELECT image_id, pulled_at, used_at FROM image LEFT JOIN image_use USING (image_id)"
    )
    return [
        (ImageId(row["image_id"]), row["used_at"] or datetime.fromisoformat(row["pulled_at"]).timestamp())
        for row in rows
    ]
