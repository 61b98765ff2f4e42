# SPDX-License-Identifier: Apache-2.0
"""Images between hyper and buildah, podman and skopeo: by a registry and by archives, the same image on both sides."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperd.host import process
from hyperd.model.image import Image, LoadedImage, NewImage, PushedTag
from tests import images
from tests.contract.image.test_archives import load, saved
from tests.contract.image.test_commit import pieces
from tests.images import directory, file, hardlink, symlink
from tests.trees import tree_of

TIMEOUT_S = 120
BASE = [
    directory("etc"),
    file("etc/motd", b"hi\n"),
    hardlink("etc/same", "etc/motd"),
    symlink("link", "etc/motd"),
]
CHANGES = [directory("etc"), file("etc/new", b"new\n", 0o640)]


@dataclass(frozen=True)
class Tool:
    """buildah or podman, with a store of its own."""

    name: str
    root: Path

    async def run(self, *words: str) -> str:
        argv = [
            *(self.name, "--root", f"{self.root}/root", "--runroot", f"{self.root}/run"),
            *("--storage-driver", "vfs", *words),
        ]
        return (await process.run_checked(argv, timeout_s=TIMEOUT_S)).stdout.decode().strip()


@pytest.fixture(params=["buildah", "podman"])
def tool(request: pytest.FixtureRequest) -> Iterator[Tool]:
    with tempfile.TemporaryDirectory(prefix="hyper-t-") as place:  # podman takes short paths alone
        yield Tool(request.param, Path(place))


async def made_here(store, name: str) -> Image:
    """Two layers of hyper's own making."""
    root = await store.import_root(pieces(images.layer_tar(BASE)), NewImage(changes=('CMD ["sh"]',)))
    new = NewImage(name, message="more", changes=("ENV COLOUR=blue", "LABEL a=b"))
    image: Image = await store.commit(root.image_id, pieces(images.layer_tar(CHANGES)), new)
    return image


async def served(name: str) -> bytes:
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"]
    return (await process.run_checked(argv, timeout_s=TIMEOUT_S)).stdout


async def pulled(store, name: str) -> Image:
    events = [event async for event in store.pull(name)]
    assert isinstance(events[-1], Image)
    return events[-1]


async def test_what_hyper_pushes_the_others_pull_as_the_same_image(hub, store, tmp_path, tool: Tool):
    name = f"{hub.address}/app:1"
    image = await made_here(store, name)
    *_, last = [event async for event in store.push(name)]
    assert isinstance(last, PushedTag)
    assert images.digest_of(await served(name)) == last.manifest_digest == image.manifest_digest

    await tool.run("pull", "--quiet", "--tls-verify=false", name)
    told = await tool.run("images", "--no-trunc", "--digests", "--format", "{{.ID}} {{.Digest}}")
    assert told.removeprefix("sha256:").split() == [
        image.image_id.removeprefix("sha256:"),
        image.manifest_digest,
    ]
    copied = tmp_path / "copy"
    argv = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{name}", f"dir:{copied}"]
    await process.run_checked(argv, timeout_s=TIMEOUT_S)
    assert images.digest_of((copied / "manifest.json").read_bytes()) == image.manifest_digest


async def test_what_the_others_push_hyper_pulls_as_the_same_image(hub, store, tmp_path, tool: Tool):
    built = images.build([BASE, CHANGES], config={"Cmd": ["sh"], "Labels": {"a": "b"}})
    await tool.run("pull", "--quiet", "--tls-verify=false", await hub.push(built, "from:1"))
    name, digest = f"{hub.address}/to:1", tmp_path / "digest"
    push = ("push", "--quiet", "--tls-verify=false", f"--digestfile={digest}")
    await tool.run(*push, f"{hub.address}/from:1", f"docker://{name}")
    image = await pulled(store, name)
    assert image.manifest_digest == digest.read_text().strip()
    assert (image.image_id, image.diff_ids) == (built.image_id, tuple(built.diff_ids))
    tree = await tree_of([store._layers.path(each) for each in image.diff_ids], tmp_path / "mnt")
    assert (tree["etc/new"]["data"], tree["link"]["kind"]) == (images.digest_of(b"new\n")[7:], "l")
    *_, last = [event async for event in store.push(name)]
    assert last.manifest_digest == image.manifest_digest


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
async def test_archives_go_both_ways(store, tmp_path, tool: Tool, form: str):
    image = await made_here(store, "test.local/app:1")
    path = tmp_path / "saved.tar"
    path.write_bytes(await saved(store, "test.local/app:1"))
    await tool.run("pull", "--quiet", f"{form}:{path}")
    told = await tool.run("images", "--no-trunc", "--format", "{{.ID}}")
    assert told.removeprefix("sha256:") == image.image_id.removeprefix("sha256:")
    back = tmp_path / "back.tar"
    await tool.run(
        "push", "--quiet", image.image_id.removeprefix("sha256:"), f"{form}:{back}:test.local/back:1"
    )
    [loaded] = await load(store, back.read_bytes())
    assert isinstance(loaded, LoadedImage)
    assert (loaded.image.image_id, loaded.tags) == (image.image_id, ("test.local/back:1",))
