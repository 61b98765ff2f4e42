# SPDX-License-Identifier: Apache-2.0
"""A budget for the store, over the real files: who goes, who stays, when."""

import asyncio
import logging
import os

import pytest

from hyperd.errors import ExhaustedError, ImageNotFoundError
from hyperd.image import Marks
from hyperd.model.image import Image
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.test_prune_and_usage import du
from tests.contract.image.test_pull import pulled
from tests.images import file
from tests.mounts import small_filesystem

MIB = 1 << 20
SHARED = [file("shared", os.urandom(MIB))]


def of_a_mebibyte(name: str):
    return images.build([SHARED, [file(name, os.urandom(MIB))]])


@pytest.fixture
async def names(hub):
    return [await hub.push(of_a_mebibyte(f"{number}"), f"app{number}:1") for number in range(4)]


async def tags(store) -> list[str]:
    return sorted(tag.rpartition("/")[2] for image in await store.list_images() for tag in image.tags)


async def test_past_the_high_mark_the_longest_unused_go_down_to_the_low_one(tmp_path, names, caplog):
    # Of each image some 3 MiB are its own, and 2 are shared: three take 11, four 14.
    caplog.set_level(logging.INFO)
    async with opened(tmp_path / "images", budget=Marks(12 * MIB, 9 * MIB)) as store:
        store._budget._fresh_s = -1.0
        pulls = [(await pulled(store, name))[0] for name in names[:3]]
        assert await tags(store) == ["app0:1", "app1:1", "app2:1"]
        await store.root_disk(pulls[0].image_id)
        await pulled(store, names[3])
        assert await tags(store) == ["app0:1", "app3:1"]
        usage = await store.usage()
        assert usage.layers_bytes <= 9 * MIB
        assert usage.budget.removed == 2
        assert usage.budget.removed_bytes >= 3 * MIB
        assert (usage.budget.high_bytes, usage.budget.low_bytes) == (12 * MIB, 9 * MIB)
        assert usage.layers_bytes == await du(store)
    told = [record for record in caplog.records if record.message == "image removed for the budget"]
    assert [record.image for record in told] == [pulls[1].image_id, pulls[2].image_id]
    assert all(record.freed_bytes > MIB for record in told)


async def test_one_in_use_or_just_used_stays_and_that_is_said(tmp_path, names, caplog):
    async with opened(tmp_path / "images", budget=Marks(1, 0)) as store:
        first, _ = await pulled(store, names[0])
        await pulled(store, names[1])
        assert await tags(store) == ["app0:1", "app1:1"]  # they have come just now
        store._budget._fresh_s = -1.0
        store.used_by(lambda: {first.image_id: "a container"})
        await pulled(store, names[2])
        assert await tags(store) == ["app0:1"]
        assert (await store.root_disk(first.image_id)).path.is_file()
    assert "images in use take more than their budget" in caplog.messages


async def test_one_that_is_asked_for_meanwhile_stays(tmp_path, names):
    """Between the look at who uses what and the removal somebody creates a container of it."""
    async with opened(tmp_path / "images", budget=Marks(1, 0)) as store:
        asked, _ = await pulled(store, names[0])
        store._budget._fresh_s = -1.0

        def in_use():
            store._budget.touch(asked.image_id)
            return {}

        store.used_by(in_use)
        await pulled(store, names[1])
        assert await tags(store) == ["app0:1"]


async def test_one_that_was_just_got_stays_though_its_answer_is_still_on_the_way(
    tmp_path, names, monkeypatch
):
    """Whoever has got an image is about to start from it; the removal must not come in between."""
    async with opened(tmp_path / "images", budget=Marks(1, 0)) as store, asyncio.TaskGroup() as tasks:
        for name in names[:2]:
            await pulled(store, name)
        store._budget._fresh_s = -1.0
        sweep, getting = store._budget._sweep, list[asyncio.Task[Image]]()

        async def sweep_while_another_asks(removed):
            freed = await sweep(removed)
            if not getting:
                getting.append(tasks.create_task(store.get(names[1])))
                await asyncio.sleep(0)  # its transaction is on its way
            return freed

        monkeypatch.setattr(store._budget, "_sweep", sweep_while_another_asks)
        await store._budget.keep()
        got = await getting[0]
        assert (await store.root_disk(got.image_id)).path.is_file()


async def test_the_order_is_not_lost_when_it_cannot_be_written_down(tmp_path, names, monkeypatch):
    async with opened(tmp_path / "images", budget=Marks(1 << 40, 1 << 40)) as store:
        image, _ = await pulled(store, names[0])
        used = dict(store._budget._used)
        assert image.image_id in used

        async def full(work, **_):
            raise ExhaustedError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(store._database, "transaction", full)
            with pytest.raises(ExhaustedError):
                await store._budget.write_down()
        assert store._budget._used == used


async def test_without_a_budget_everything_stays(tmp_path, names):
    async with opened(tmp_path / "images") as store:
        store._budget._fresh_s = -1.0
        for name in names:
            await pulled(store, name)
        assert len(await store.list_images()) == 4
        assert (await store.usage()).budget.high_bytes == 0


async def test_the_order_outlives_the_daemon(tmp_path, names):
    async with opened(tmp_path / "images", budget=Marks(12 * MIB, 12 * MIB)) as store:
        store._budget._fresh_s = -1.0
        first, _ = await pulled(store, names[0])
        await pulled(store, names[1])
        await store.root_disk(first.image_id)
    async with opened(tmp_path / "images", budget=Marks(12 * MIB, 12 * MIB)) as store:
        store._budget._fresh_s = -1.0
        for name in names[2:]:
            await pulled(store, name)
        assert await tags(store) == ["app0:1", "app2:1", "app3:1"]


@pytest.mark.parametrize("budget", [False, True])
async def test_a_pull_that_does_not_fit_makes_room(tmp_path, hub, budget):
    large = [images.build([[file(str(number), os.urandom(5 * MIB))]]) for number in range(2)]
    names = [await hub.push(built, f"large{number}:1") for number, built in enumerate(large)]
    marks = Marks(1 << 40, 1 << 40) if budget else Marks()
    async with (
        small_filesystem(tmp_path / "small", size_mib=24) as place,
        opened(place / "images", budget=marks, reserve_bytes=MIB) as store,
    ):
        store._budget._fresh_s = -1.0
        await pulled(store, names[0])
        (place / "ballast").write_bytes(bytes(6 * MIB))
        if budget:
            await pulled(store, names[1])
            assert await tags(store) == ["large1:1"]
            with pytest.raises(ImageNotFoundError):
                await store.get(large[0].image_id)
        else:
            with pytest.raises(ExhaustedError):
                await pulled(store, names[1])
