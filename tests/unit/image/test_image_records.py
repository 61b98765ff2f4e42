# SPDX-License-Identifier: Apache-2.0
"""Names, ids and removal, by Docker's rules, on a real database without any file."""

from datetime import UTC, datetime
from typing import Any

import pytest

from hyperd.errors import ImageNotFoundError, InvalidError, WrongStateError
from hyperd.host.database import Database
from hyperd.image import pruning, records, removal
from hyperd.image.manifest import Manifest, parse_manifest
from hyperd.image.reference import parse_named
from hyperd.model.image import Digest, ImageId, Removal
from tests import images
from tests.images import file


@pytest.fixture
async def database(database: Database) -> Database:
    await database.migrate(records.ROOM, records.MIGRATIONS)
    return database


async def add(database, built, *names):
    manifest = parse_manifest(built.manifest, "x")
    assert isinstance(manifest, Manifest)
    new = records.NewImage(
        ImageId(built.image_id),
        Digest(built.manifest_digest),
        manifest,
        built.config,
        tuple(map(Digest, built.diff_ids)),
        tuple(map(parse_named, names)),
    )
    return await database.transaction(lambda connection: records.save_image(connection, new))


async def test_a_layer_of_several_images_is_told_with_the_last_that_goes(database):
    shared, own = [file("shared")], [file("own")]
    built = [images.build([shared]), images.build([shared, own]), images.build([own])]
    for number, each in enumerate(built):
        await add(database, each, f"example.org/x:{number}")
    kept = built[2].image_id
    choice = pruning.parse_choice([], everything=True, now=datetime.now(UTC))
    removed = await database.transaction(
        lambda connection: pruning.prune(connection, choice, {ImageId(kept): "somebody"})
    )
    assert set(removed.deleted) == {built[0].image_id, built[1].image_id}
    assert sorted(removed.removal.deleted) == sorted(
        (built[0].image_id, built[1].image_id, built[0].diff_ids[0])
    )
    assert removed.removal.deleted[-1] == built[0].diff_ids[0]


async def find(database, text):
    return await database.transaction(lambda connection: records.find_id(connection, text))


async def remove(database, text, **options: Any):
    chosen: dict[str, Any] = {"force": False, "in_use": {}} | options
    done = await database.transaction(lambda connection: removal.remove(connection, text, **chosen))
    return done.removal


def built(number):
    return images.build([[images.file("base")], [images.file("n", str(number))]])


async def test_an_image_is_found_by_every_name_it_has(database):
    one = built(1)
    digest = f"docker.io/library/app@{one.manifest_digest}"
    image = await add(database, one, "app:1", digest)
    hex_id = one.image_id.removeprefix("sha256:")
    for text in ("app:1", "docker.io/library/app:1", digest, f"app@{one.manifest_digest}", one.image_id, hex_id,
                 hex_id[:1], hex_id[:12], f"sha256:{hex_id[:8]}", f"app:9@{one.manifest_digest}"):  # fmt: skip
        assert await find(database, text) == image.image_id
    for text in ("app", "other:1", f"other@{one.manifest_digest}", "sha256:" + "0" * 64):
        with pytest.raises(ImageNotFoundError):
            await find(database, text)


async def test_a_name_wins_over_an_id_that_begins_so(database):
    one, two = built(1), built(2)
    prefix = one.image_id.removeprefix("sha256:")[:6]
    await add(database, one)
    assert await find(database, prefix) == one.image_id
    await add(database, two, prefix)
    assert await find(database, prefix) == two.image_id


async def test_an_ambiguous_beginning_is_refused(database):
    made = [built(number) for number in range(17)]  # more than there are first digits
    for each in made:
        await add(database, each)
    digits = [each.image_id.removeprefix("sha256:")[0] for each in made]
    twice = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(InvalidError, match="more than one image"):
        await find(database, twice)


async def test_the_last_tag_takes_the_image_and_its_digest_with_it(database):
    one = built(1)
    digest = f"docker.io/library/app@{one.manifest_digest}"
    await add(database, one, "app:1", "app:2", digest)
    assert await remove(database, "app:1") == Removal(("docker.io/library/app:1",), ())
    done = await remove(database, "app:2")
    assert done.untagged == ("docker.io/library/app:2", digest)
    assert done.deleted == (one.image_id, *reversed(one.diff_ids))
    with pytest.raises(ImageNotFoundError):
        await find(database, one.image_id)


async def test_layers_of_others_are_not_reported_deleted(database):
    one, two = built(1), built(2)
    await add(database, one, "one")
    await add(database, two, "two")
    assert (await remove(database, "one")).deleted == (one.image_id, one.diff_ids[1])


async def test_by_id_several_names_ask_for_force(database):
    one = built(1)
    await add(database, one, "a:1", "b:1")
    with pytest.raises(WrongStateError, match="2 tags"):
        await remove(database, one.image_id)
    done = await remove(database, one.image_id[:19], force=True)
    assert (len(done.untagged), done.deleted[0]) == (2, one.image_id)


async def test_an_image_in_use_keeps_its_layers_whatever_is_forced(database):
    one = built(1)
    await add(database, one, "app", "app:2")
    in_use = {ImageId(one.image_id): "a container"}
    assert (await remove(database, "app:2", in_use=in_use)).deleted == ()
    with pytest.raises(WrongStateError, match="a container uses"):
        await remove(database, "app", in_use=in_use)
    done = await remove(database, "app", in_use=in_use, force=True)
    assert (done.untagged, done.deleted) == (("docker.io/library/app:latest",), ())
    assert await find(database, one.image_id) == one.image_id
    with pytest.raises(WrongStateError):
        await remove(database, one.image_id, in_use=in_use)


async def test_a_refused_removal_changes_nothing(database):
    one = built(1)
    before = await add(database, one, "app")
    with pytest.raises(WrongStateError):
        await remove(database, "app", in_use={before.image_id: "a container"})
    assert await database.transaction(lambda c: records.get_image(c, before.image_id)) == before


async def test_other_tools_are_told_every_name(database):
    one, two = built(1), built(2)
    await add(database, one, "a", "b")
    await add(database, two)
    entries = await database.transaction(records.index_entries)
    assert sorted((entry.digest, entry.name) for entry in entries) == sorted(
        [
            (one.manifest_digest, "docker.io/library/a:latest"),
            (one.manifest_digest, "docker.io/library/b:latest"),
            (two.manifest_digest, ""),
        ]
    )
