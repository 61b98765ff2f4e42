# SPDX-License-Identifier: Apache-2.0
"""Real small OCI images made from nothing but Debian's busybox, and a registry on loopback to pull them from.

    built = build([BASE, [file("etc/motd", b"hi")]], config={"Cmd": ["cat", "/etc/motd"]})
    write_layout(built, tmp_path / "layout", "docker.io/library/motd:latest")      # oci:
    write_archive(built, tmp_path / "motd.tar", "docker.io/library/motd:latest")   # oci-archive:
    async with registry(tmp_path) as hub:
        name = await hub.push(built, "motd:latest")                                 # 127.0.0.1:PORT/motd:latest

The same input gives the same bytes, so digests may be compared between runs. Nothing here reaches the internet.
"""

import functools
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

ROOT = Path(__file__).resolve().parent.parent
MTIME = 1_700_000_000
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
audio:x:29:app
users:x:100:app
nogroup:x:65534:
"""


@dataclass(frozen=True)
class Entry:
    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    linkname: str = ""
    xattrs: tuple[tuple[str, str], ...] = ()
    mtime: int = MTIME


def file(name: str, data: bytes | str = b"", mode: int = 0o644, **rest: Any) -> Entry:
    return Entry(name, data.encode() if isinstance(data, str) else data, mode=mode, **rest)


def directory(name: str, mode: int = 0o755, **rest: Any) -> Entry:
    return Entry(name, type=tarfile.DIRTYPE, mode=mode, **rest)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, mode=0o777, linkname=target)


def hardlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, linkname=target)


def whiteout(name: str) -> Entry:
    parent, _, base = name.rpartition("/")
    return file(f"{parent}/.wh.{base}" if parent else f".wh.{base}")


def opaque(name: str) -> Entry:
    return file(f"{name}/.wh..wh..opq")


def layer_tar(entries: Sequence[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.mtime = entry.type, entry.mode, entry.mtime
            info.uid, info.gid, info.linkname = entry.uid, entry.gid, entry.linkname
            info.size = len(entry.data) if entry.type == tarfile.REGTYPE else 0
            info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in entry.xattrs}
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def mkfs_erofs() -> str:
    """What set-up has built, else the system's."""
    built = sorted(Path("/var/cache/hyper/erofs").glob("*/mkfs.erofs"))
    return str(built[-1]) if built else "mkfs.erofs"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@functools.cache
def busybox_entries() -> tuple[Entry, ...]:
    """Debian's dynamic busybox, its libraries, and every applet as a hard link."""
    busybox = (ROOT / "build/assets/busybox").resolve()
    assert busybox.exists(), (
        "the tests' images need build/assets/busybox, which `make test-images` puts there"
    )
    ldd = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False).stdout.splitlines()
    libraries = [word for line in ldd for word in line.split() if word.startswith("/")]
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    names = ("bin", "dev", "etc", "home", "lib", "lib64", "proc", "root", "sys", "usr", "usr/bin", "var")
    entries = [directory(name) for name in names]
    entries += [directory("tmp", 0o1777), directory("var/tmp", 0o1777)]
    entries.append(file("bin/busybox", busybox.read_bytes(), 0o755))
    entries += [hardlink(f"bin/{applet}", "bin/busybox") for applet in sorted(applets) if applet != "busybox"]
    seen = set(names)
    for library in sorted(libraries):
        parts = library.strip("/").split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent not in seen:
                seen.add(parent)
                entries.append(directory(parent))
        entries.append(file(library.strip("/"), Path(library).resolve().read_bytes(), 0o755))
    entries += [file("etc/passwd", PASSWD), file("etc/group", GROUP), symlink("etc/mtab", "../proc/mounts")]
    return tuple(entries)


def usage_entries() -> tuple[Entry, ...]:
    """What an application's layer contains, awkward things included; ``changes_entries`` goes on top."""
    return (
        file("etc/passwd", PASSWD + "app:x:1000:1000:app:/home/app:/bin/sh\n"),
        file("etc/group", GROUP + "app:x:1000:\n"),
        directory("home/app", 0o750, uid=1000, gid=1000),
        file("home/app/hello", "hello\n", uid=1000, gid=1000),
        hardlink("home/app/hello-again", "home/app/hello"),
        directory("srv"),
        file("srv/deleted", "a higher layer deletes this\n"),
        file("srv/replaced", "old\n"),
        directory("srv/opaque"),
        file("srv/opaque/hidden", "a higher layer hides this\n"),
        directory("srv/gone"),
        file("srv/gone/inside", "a higher layer deletes the directory\n"),
        file("srv/setuid", "#!/bin/sh\nid -u\n", 0o4755),
        file("srv/not-executable", "#!/bin/sh\necho no\n", 0o644),
        file("srv/attributed", "xattr\n", xattrs=(("user.hyper", "yes"),)),
        file("srv/ünïcode-" + "long-" * 30, "a long name\n"),
        symlink("srv/link", "replaced"),
    )


def changes_entries() -> tuple[Entry, ...]:
    return (
        whiteout("srv/deleted"),
        whiteout("srv/gone"),
        file("srv/replaced", "new\n"),
        directory("srv/opaque"),
        opaque("srv/opaque"),
        file("srv/opaque/seen", "only this\n"),
    )


@dataclass(frozen=True)
class BuiltImage:
    """An image as bytes: what a registry would hold."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: tuple[bytes, ...]  # compressed, lowest first
    diff_ids: tuple[str, ...]
    blobs: dict[str, bytes] = field(repr=False)  # config and layers by digest

    @property
    def manifest_digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def image_id(self) -> str:
        return digest_of(self.config)

    @property
    def layer_digests(self) -> tuple[str, ...]:
        return tuple(digest_of(layer) for layer in self.layers)


@dataclass(frozen=True)
class BuiltIndex:
    manifest: bytes
    media_type: str
    children: tuple[BuiltImage, ...]

    @property
    def manifest_digest(self) -> str:
        return digest_of(self.manifest)


@functools.lru_cache(maxsize=32)
def _compressed(tar: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(tar, 1, mtime=0)
    return zstandard.compress(tar, 1) if compression == "zstd" else tar


def build(
    layers: Sequence[Sequence[Entry] | bytes],
    *,
    config: dict[str, Any] | None = None,
    compression: str | Sequence[str] = "gzip",
    architecture: str = "amd64",
    docker: bool = False,
    top: dict[str, Any] | None = None,
    layer_extra: dict[str, Any] | None = None,
) -> BuiltImage:
    """Layers lowest first, each a list of entries or a ready tar. ``config`` is the image config's inner object."""
    tars = [layer if isinstance(layer, bytes) else layer_tar(layer) for layer in layers]
    each = [compression] * len(tars) if isinstance(compression, str) else list(compression)
    packed = tuple(_compressed(tar, how) for tar, how in zip(tars, each, strict=True))
    diff_ids = tuple(digest_of(tar) for tar in tars)
    body = {
        "created": "2026-01-02T03:04:05.123456789Z",
        "author": "hyper tests",
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]} if config is None else config,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [
            {"created": "2026-01-02T03:04:05Z", "created_by": f"layer {number}"}
            for number in range(len(tars))
        ]
        + [{"created_by": "CMD", "empty_layer": True}],
        **(top or {}),
    }
    config_blob = json.dumps(body, sort_keys=True).encode()
    suffix = {"gzip": ".gzip" if docker else "+gzip", "zstd": ".zstd" if docker else "+zstd", "none": ""}
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": descriptor(config_blob, DOCKER_CONFIG if docker else OCI_CONFIG),
        "layers": [
            descriptor(blob, (DOCKER_LAYER if docker else OCI_LAYER) + suffix[how]) | (layer_extra or {})
            for blob, how in zip(packed, each, strict=True)
        ],
    }
    return BuiltImage(
        manifest=json.dumps(manifest, sort_keys=True).encode(),
        media_type=str(manifest["mediaType"]),
        config=config_blob,
        layers=packed,
        diff_ids=diff_ids,
        blobs={digest_of(blob): blob for blob in (config_blob, *packed)},
    )


def descriptor(blob: bytes, media_type: str, **extra: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(blob), "size": len(blob), **extra}


def index(
    children: Sequence[tuple[BuiltImage, dict[str, str]]], *, docker: bool = False, attestation: bool = True
) -> BuiltIndex:
    """Children with their platforms; ``attestation`` adds what BuildKit adds for provenance."""
    images = [image for image, _ in children]
    manifests = [
        descriptor(image.manifest, image.media_type, platform=platform) for image, platform in children
    ]
    if attestation:
        statement = build([b"in-toto statement"], compression="none", architecture="unknown")
        images.append(statement)
        manifests.append(
            descriptor(
                statement.manifest,
                statement.media_type,
                platform={"os": "unknown", "architecture": "unknown"},
                annotations={"vnd.docker.reference.type": "attestation-manifest"},
            )
        )
    media_type = DOCKER_LIST if docker else OCI_INDEX
    body = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    return BuiltIndex(json.dumps(body, sort_keys=True).encode(), media_type, tuple(images))


def busybox_image(**config: Any) -> BuiltImage:
    """Three layers: busybox, an application with a user of its own, and deletions; ``config`` as images have it."""
    return build([busybox_entries(), usage_entries(), changes_entries()], config=busybox_config(**config))


def busybox_config(**config: Any) -> dict[str, Any]:
    return {"Env": ["PATH=/bin:/usr/bin", "FLAVOUR=busybox"], "Cmd": ["sh"], "WorkingDir": "/", **config}


def write_layout(built: BuiltImage | BuiltIndex, target: Path, name: str = "") -> None:
    """An `oci:` directory."""
    for path, data in _layout_files(built, name).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(data)


def write_archive(built: BuiltImage | BuiltIndex, target: Path, name: str = "") -> None:
    """An `oci-archive:` file."""
    target.write_bytes(layer_tar([file(path, data) for path, data in _layout_files(built, name).items()]))


def write_docker_archive(built: BuiltImage, target: Path, tags: Sequence[str]) -> None:
    """What `docker save` wrote before it wrote OCI layouts; layers must be uncompressed."""
    layers = [f"{number}/layer.tar" for number in range(len(built.layers))]
    config = f"{built.image_id.removeprefix('sha256:')}.json"
    manifest = [{"Config": config, "RepoTags": list(tags), "Layers": layers}]
    entries = [file(config, built.config)]
    entries += [file(path, data) for path, data in zip(layers, built.layers, strict=True)]
    target.write_bytes(layer_tar([*entries, file("manifest.json", json.dumps(manifest))]))


def _layout_files(built: BuiltImage | BuiltIndex, name: str) -> dict[str, bytes]:
    images = built.children if isinstance(built, BuiltIndex) else (built,)
    blobs = {digest: blob for image in images for digest, blob in image.blobs.items()}
    blobs |= {image.manifest_digest: image.manifest for image in images}
    blobs[built.manifest_digest] = built.manifest
    annotations = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
    top = {"schemaVersion": 2, "manifests": [descriptor(built.manifest, built.media_type, **annotations)]}
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(top).encode(),
        **{f"blobs/sha256/{digest.removeprefix('sha256:')}": blob for digest, blob in blobs.items()},
    }
