# SPDX-License-Identifier: Apache-2.0
"""Step `builder`: the image in whose virtual machine `hyper build` runs.

Debian 13's buildah on every host: Debian 12's knows no here-documents. Two layers, packages and `guestbuilder/root`, in
one OCI archive, which hyperd loads when somebody builds.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setup import cache, debian
from setup.step import BUILD, ROOT, StepError, hash_of, link_asset

if TYPE_CHECKING:
    from collections.abc import Iterable

    from setup.step import Job

KIND = "builder"
ARCHIVE = "builder.tar"
NAME = "docker.io/hyper/builder"
RELEASE = "trixie"
UPPER = ROOT / "guestbuilder" / "root"
# netavark: buildah does not start without it, though no network of its own is made. mount: for `prepare`.
PACKAGES = ("buildah", "netavark", "crun", "mount", "git", "openssh-client", "ca-certificates")
# Tests and plugins that come with the packages, what is only read by people, and the Perl of git's rarer commands.
EXCLUDED = (
    *(
        "/usr/share/man/*",
        "/usr/share/doc/*",
        "/usr/share/info/*",
        "/usr/share/locale/*",
        "/usr/share/i18n/*",
    ),
    *("/usr/share/zoneinfo/*", "/usr/share/bash-completion/*", "/usr/lib/x86_64-linux-gnu/gconv/*"),
    *("/usr/libexec/buildah/*", "/usr/lib/cni/*", "/usr/lib/podman/netavark-dhcp-proxy-client"),
    *("/usr/lib/x86_64-linux-gnu/perl/*", "/usr/share/perl/*", "/usr/lib/udev/*"),
)
EPOCH = 1_767_225_600  # 2026-01-01
ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Builder:
    name = "builder"

    def __init__(self, *, renew: bool) -> None:
        self._renew = renew

    def key(self) -> str:
        return hash_of(Path(__file__), *(text for path in files() for text in (str(path), UPPER / path)))

    def is_ready(self) -> bool:
        return (BUILD / "assets" / ARCHIVE).exists()

    def run(self, job: Job) -> None:
        if self._renew:
            shutil.rmtree(cache.entry(KIND, self.key()), ignore_errors=True)
        place = cache.make_entry(KIND, self.key(), lambda out: build(job, out / ARCHIVE))
        link_asset(ARCHIVE, place / ARCHIVE)
        job.result = f"{(place / ARCHIVE).stat().st_size / 1e6:.0f} MB, {place}"


def files() -> list[Path]:
    return sorted(path.relative_to(UPPER) for path in UPPER.rglob("*") if path.is_file())


def build(job: Job, archive: Path) -> None:
    work = BUILD / "builder"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job.say(f"installing {', '.join(PACKAGES)} of {RELEASE} into an image")
    install(job, work / "base.tar")
    layers = [layer(work / "base.tar"), layer_of(upper_layer())]
    write_archive(archive, layers)
    shutil.rmtree(work)


def install(job: Job, base: Path) -> None:
    job.hint = f"the mirror of this machine must carry {RELEASE}"
    job.run(
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        '--customize-hook=rm -rf "$1/var/lib/dpkg/info" "$1/var/cache/debconf" "$1"/var/log/*',
        *(RELEASE, base),
        *sources(),
        environment={"SOURCE_DATE_EPOCH": str(EPOCH)},
    )


def sources() -> list[str]:
    """This machine's mirror, for the other release; its security archive, too, where it has one."""
    mirror = debian.mirror_of(debian.codename())
    if not mirror:
        raise StepError("no Debian mirror is configured", hint="configure one in /etc/apt/sources.list.d")
    security = debian.mirror_of(f"{debian.codename()}-security")
    found = [f"deb [signed-by={debian.KEYRING}] {mirror} {RELEASE} main"]
    return found + (
        [f"deb [signed-by={debian.KEYRING}] {security} {RELEASE}-security main"] if security else []
    )


def upper_layer() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(UPPER.rglob("*")):
            info = tarfile.TarInfo(str(path.relative_to(UPPER)))
            info.mtime, info.mode = EPOCH, 0o755 if path.is_dir() or path.parent.name == "hyper" else 0o644
            if path.is_dir():
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                data = path.read_bytes()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def layer(tar: Path) -> tuple[str, bytes]:
    return layer_of(tar.read_bytes())


def layer_of(tar: bytes) -> tuple[str, bytes]:
    """Its diff_id and its blob."""
    return digest_of(tar), gzip.compress(tar, 6, mtime=0)


def write_archive(archive: Path, layers: Iterable[tuple[str, bytes]]) -> None:
    diff_ids, blobs = zip(*layers, strict=True)
    config = encoded({
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ENVIRONMENT, "Cmd": ["/usr/libexec/hyper/hold"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })  # fmt: skip
    manifest = encoded({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described(CONFIG_TYPE, config),
        "layers": [described(LAYER_TYPE, blob) for blob in blobs],
    })  # fmt: skip
    # Other content, another name: `images` then shows which builder is which. hyperd finds it by its id.
    name = f"{NAME}:{digest_of(manifest).removeprefix('sha256:')[:12]}"
    entry = {**described(MANIFEST_TYPE, manifest), "annotations": {"io.containerd.image.name": name}}
    members = {
        "index.json": encoded({"schemaVersion": 2, "manifests": [entry]}),
        "oci-layout": encoded({"imageLayoutVersion": "1.0.0"}),
        **{f"blobs/sha256/{digest_of(data)[7:]}": data for data in (manifest, config, *blobs)},
    }
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path, data in members.items():
            info = tarfile.TarInfo(path)
            info.size, info.mtime = len(data), EPOCH
            tar.addfile(info, io.BytesIO(data))


def described(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def encoded(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
