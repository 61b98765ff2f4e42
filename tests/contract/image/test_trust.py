# SPDX-License-Identifier: Apache-2.0
"""The host's signature policy, through the real skopeo, gpg and registry: who is let in, who is not, what is shown."""

import pytest

from hyperd.errors import DeniedError
from hyperd.model.image import Requirement
from tests import images
from tests.contract.image.conftest import opened
from tests.contract.image.signing import (
    ACCEPT,
    REJECT,
    SIGSTORE_PUBLIC,
    host_with_policy,
    signed_by,
    sigstore_signed,
)
from tests.contract.image.test_archives import load, saved
from tests.contract.image.test_pull import AMD64, ARM64, leftovers, pulled
from tests.contract.image.troubled import answer, troubled
from tests.images import digest_of, file

LAYERS = [[file("a", "one")], [file("b", "two")]]
SIGNED = images.build(LAYERS, config={"Cmd": ["good"]})
UNSIGNED = images.build(LAYERS, config={"Cmd": ["evil"]})  # of the very same layers


@pytest.fixture
async def host(tmp_path, monkeypatch):
    async with host_with_policy(tmp_path, monkeypatch) as it:
        yield it


def in_index(built):
    return images.index([(built, AMD64), (images.build([[file("arm")]], architecture="arm64"), ARM64)])


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("identity", ["", "matchExact"])
async def test_a_signed_image_is_admitted_and_says_by_what(hub, store, host, docker, indexed, identity):
    host.allow({f"docker:{hub.address}/app": signed_by(host.public, identity)}, default=REJECT)
    built = images.build(LAYERS, docker=docker)
    name = await hub.push(in_index(built) if indexed else built, "app:1")
    await host.sign(built.manifest, name)
    image, _ = await pulled(store, name)
    assert image.manifest_digest == built.manifest_digest
    [admission] = image.admissions
    assert (admission.reference, admission.manifest_digest) == (name, built.manifest_digest)
    assert admission.scope == f"docker:{hub.address}/app"
    key = f"{host.public} {digest_of(host.public.read_bytes())}"
    assert admission.requirements == (Requirement("signedBy", (key,), identity),)
    assert (await store.get(name)).admissions == image.admissions


async def test_where_nothing_is_asked_that_is_shown(hub, store, host):
    image, _ = await pulled(store, await hub.push(UNSIGNED, "app:1"))
    [admission] = image.admissions
    assert admission.scope == "default"
    assert admission.requirements == (Requirement("insecureAcceptAnything"),)


@pytest.mark.parametrize("indexed", [False, True])
async def test_an_unsigned_image_is_refused_and_leaves_nothing(hub, store, host, indexed):
    host.allow({f"docker:{hub.address}": signed_by(host.public)})
    name = await hub.push(in_index(UNSIGNED) if indexed else UNSIGNED, "app:1")
    with pytest.raises(DeniedError, match="policy does not allow") as refused:
        await pulled(store, name)
    assert refused.value.subject == name
    assert "signature was required" in refused.value.evidence
    assert leftovers(store) == []
    assert await store.list_images() == []
    assert not any(store._content.has(digest) for digest in UNSIGNED.blobs)


@pytest.mark.parametrize("indexed", [False, True])
async def test_a_signature_for_another_tag_is_none(hub, store, host, indexed):
    """A registry that serves an old image, well signed, under a new tag. Asking by digest would not notice."""
    host.allow({f"docker:{hub.address}": signed_by(host.public)})
    served = in_index(SIGNED) if indexed else SIGNED
    await host.sign(SIGNED.manifest, await hub.push(served, "app:old"))
    with pytest.raises(DeniedError, match="policy does not allow"):
        await pulled(store, await hub.push(served, "app:new"))


async def test_a_key_that_signed_nothing_lets_nothing_in(hub, store, host, tmp_path, monkeypatch):
    name = await hub.push(SIGNED, "app:1")
    async with host_with_policy(tmp_path / "other", monkeypatch) as other:
        await other.sign(SIGNED.manifest, name)
        (host.signatures).symlink_to(other.signatures)
        other.allow({f"docker:{hub.address}": signed_by(other.public)})
        await pulled(store, name)
        other.allow({f"docker:{hub.address}": signed_by(host.public)})
        with pytest.raises(DeniedError, match="policy does not allow"):
            await pulled(store, name)


async def test_an_unsigned_manifest_of_layers_that_are_here_is_refused(hub, store, host):
    """Nothing would have to be copied, and copying is when skopeo looks at signatures."""
    host.allow({f"docker:{hub.address}/app": signed_by(host.public)})
    good = await hub.push(SIGNED, "app:1")
    await host.sign(SIGNED.manifest, good)
    await pulled(store, good)
    with pytest.raises(DeniedError, match="policy does not allow"):
        await pulled(store, await hub.push(UNSIGNED, "app:1"))
    assert [image.image_id for image in await store.list_images()] == [SIGNED.image_id]


async def test_an_image_that_is_here_gets_no_name_that_the_policy_denies_it(hub, store, host):
    host.allow({f"docker:{hub.address}/strict": signed_by(host.public)})
    free = await hub.push(UNSIGNED, "free:1")
    await pulled(store, free)
    with pytest.raises(DeniedError, match="policy does not allow"):
        await pulled(store, await hub.push(UNSIGNED, "strict:1"))
    assert (await store.get(free)).tags == (free,)


@pytest.mark.parametrize("first", ["evil", "good"])
async def test_two_faces_of_one_tag_are_refused(hub, store, host, first):
    """The manifest that is kept and the one whose signature was looked at are asked for separately."""
    faces = {"evil": UNSIGNED, "good": SIGNED}
    shown: list[str] = []

    def decide(request, _):
        if request.path != "/v2/app/manifests/1":
            return None
        shown.append(first if not shown else "good" if first == "evil" else "evil")
        face = faces[shown[-1]]
        kind = (f"Content-Type: {face.media_type}", f"Docker-Content-Digest: {face.manifest_digest}")
        return answer("200 OK", *kind, body=face.manifest)

    for name, face in faces.items():
        await hub.push(face, f"app:{name}")
    async with troubled(hub.address, decide) as between:
        name = f"{between.address}/app:1"
        host.allow({f"docker:{between.address}": signed_by(host.public)})
        await host.sign(SIGNED.manifest, name)
        with pytest.raises(DeniedError, match="policy"):
            await pulled(store, name)
    assert set(shown) == set(faces)
    assert await store.list_images() == []
    assert leftovers(store) == []


async def test_a_sigstore_signature_is_looked_at(hub, store, host):
    """Debian 12 has taken sigstore out of its skopeo: there nobody is let in."""
    host.allow({f"docker:{hub.address}": sigstore_signed(SIGSTORE_PUBLIC)})
    source, name = await hub.push(SIGNED, "source:1"), f"{hub.address}/app:1"
    if not await host.push_signed_by_sigstore(source, name):
        with pytest.raises(DeniedError, match="policy does not allow") as refused:
            await pulled(store, source)
        assert "install skopeo >= 1.13" in refused.value.hint
        return
    image, _ = await pulled(store, name)
    assert image.manifest_digest == SIGNED.manifest_digest
    [admission] = image.admissions
    key = f"{SIGSTORE_PUBLIC} {digest_of(SIGSTORE_PUBLIC.read_bytes())}"
    assert admission.requirements == (Requirement("sigstoreSigned", (key,), "matchRepository"),)
    with pytest.raises(DeniedError, match="policy does not allow"):
        await pulled(store, source)


async def test_a_policy_is_of_what_comes_in_not_of_what_goes_out(hub, store, host):
    image, _ = await pulled(store, await hub.push(SIGNED, "app:1"))
    archive = await saved(store, image.tags[0])
    host.allow({}, default=REJECT)
    await store.tag(image.image_id, f"{hub.address}/pushed:1")
    assert [event async for event in store.push(f"{hub.address}/pushed:1")]
    await store.remove(image.image_id, force=True)
    with pytest.raises(DeniedError, match="policy does not allow"):
        await load(store, archive)
    host.allow({"oci:": ACCEPT}, default=REJECT)
    [loaded] = await load(store, archive)
    [admission] = loaded.image.admissions
    assert admission.scope == "oci:"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"default": []}', '{"default": [1]}', '{"default": null}'])
async def test_a_policy_that_cannot_be_read_lets_nothing_in(hub, tmp_path, host, text):
    (host.home / ".config/containers/policy.json").write_text(text)
    async with opened(tmp_path / "images") as store:
        with pytest.raises(DeniedError, match="policy cannot be read"):
            await pulled(store, await hub.push(SIGNED, "app:1"))
