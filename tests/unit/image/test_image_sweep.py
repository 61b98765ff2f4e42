# SPDX-License-Identifier: Apache-2.0
"""What garbage collection owes to each, case by case; test_image_garbage.py leaves the cases to chance."""

import asyncio
import functools

import pytest

from hyperd.errors import ImageNotFoundError
from hyperd.image import records
from hyperd.image.content import hex_of
from hyperd.model.image import Digest, ImageId
from tests.unit.image.lives import one_life, place
from tests.unit.image.played import BUILT

GZIP, ZSTD, PLAIN, OTHER = "example.org/x:1", "example.org/y:1", "example.org/y:2", "example.org/x:2"


def files_of(name):
    """Of its blobs and its manifest."""
    return {hex_of(digest) for digest in (*BUILT[name].blobs, BUILT[name].manifest_digest)}


def blobs(daemon):
    return {path.name for path in (daemon.content.shared_blob_dir / "sha256").iterdir()}


async def test_what_is_pinned_stays_until_the_last_pin_goes():
    async with one_life() as daemon:

        async def story():
            await daemon.pull(GZIP)
            some = [Digest(BUILT[GZIP].diff_ids[0])]
            others = [Digest(BUILT[GZIP].manifest_digest)]
            async with daemon.garbage.pinned(others):
                async with daemon.garbage.pinned(some):
                    async with daemon.garbage.pinned(some):
                        await daemon.remove(GZIP)
                        await daemon.garbage.sweep(some)
                    assert daemon.layers.has(*some)
                    assert daemon.content.has(*others)
                assert not daemon.layers.has(*some)
                assert daemon.content.has(*others)
            assert not daemon.there()
            assert not daemon.marks()

        await daemon.alone(story)


async def test_a_removal_is_finished_by_the_next_daemon():
    with place() as here:
        async with here.opened() as daemon:
            await daemon.alone(lambda: daemon.pull(GZIP))
            daemon.workers.unlinks = lambda: 3
            with pytest.raises(asyncio.CancelledError):
                await daemon.alone(lambda: daemon.remove(GZIP))
            assert daemon.there()
        async with here.opened() as daemon:
            await daemon.alone(lambda: daemon.garbage.sweep_older_than(3600))
            assert not daemon.there()
            assert not daemon.marks()


async def test_blobs_of_an_image_that_comes_in_another_compression_go():
    async with one_life() as daemon:
        for name in (GZIP, ZSTD, PLAIN, GZIP):
            await daemon.alone(functools.partial(daemon.pull, name))
            assert blobs(daemon) == files_of(name)
            assert daemon.there() == daemon.owned()


async def test_an_uncompressed_blob_that_nobody_owns_goes_though_a_layer_is_called_so():
    async with one_life() as daemon:
        name = hex_of(BUILT[PLAIN].diff_ids[0])
        await daemon.alone(lambda: daemon.pull(GZIP))
        layer = daemon.layers.path(Digest(BUILT[PLAIN].diff_ids[0]))
        (daemon.content.shared_blob_dir / "sha256" / name).write_bytes(b"of a pull that broke")
        await daemon.alone(lambda: daemon.garbage.sweep_older_than(-1))
        assert name not in blobs(daemon)
        assert layer.is_file()
        assert daemon.owned() == daemon.there()


async def test_a_blob_stays_though_the_layer_that_is_called_so_goes():
    async with one_life() as daemon:
        digest = Digest(BUILT[PLAIN].diff_ids[0])
        await daemon.alone(lambda: daemon.pull(PLAIN), lambda: daemon.pull(OTHER))
        daemon.connection.execute("DELETE FROM image_layer WHERE diff_id = ?", (digest,))
        daemon.connection.execute(
            "INSERT INTO image_layer VALUES (?, 9, ?, ?)",
            (BUILT[OTHER].image_id, BUILT[OTHER].diff_ids[1], digest),
        )
        await daemon.alone(lambda: daemon.garbage.sweep_older_than(-1))
        assert daemon.content.has(digest)
        assert not daemon.layers.has(digest)
        assert records.find_layer(daemon.connection, digest) is None


async def test_what_is_held_is_what_the_records_say_under_the_pins():
    """The image comes in other blobs between the look and the pins, and goes while it is held."""
    async with one_life() as daemon:
        image_id = ImageId(BUILT[GZIP].image_id)
        await daemon.alone(lambda: daemon.pull(GZIP))
        before = [(BUILT[GZIP].manifest_digest, records.digests_of(daemon.connection, image_id))]
        await daemon.alone(lambda: daemon.pull(ZSTD))

        def look(connection):
            if before:
                return before.pop()
            return records.get_image(connection, image_id).manifest_digest, records.digests_of(
                connection, image_id
            )

        async def story():
            async with daemon.garbage.held(look) as found:
                await daemon.remove(image_id)
                assert found == BUILT[ZSTD].manifest_digest
                assert blobs(daemon) == files_of(ZSTD)
            assert not daemon.there()

        await daemon.alone(story)


async def test_what_is_held_may_have_gone_before():
    async with one_life() as daemon:

        def look(connection):
            records.get_image(connection, ImageId(BUILT[GZIP].image_id))
            return None, set()

        async def story():
            async with daemon.garbage.held(look):
                pytest.fail("it is not there")

        with pytest.raises(ImageNotFoundError):
            await daemon.alone(story)
