# SPDX-License-Identifier: Apache-2.0
"""skopeo, the only thing here that speaks with registries: mirrors, logins, credential helpers and policies are its.

Manifests and configs are fetched raw: `skopeo copy` into a layout rewrites Docker's schema 2 as OCI, which would
give image ids and digests that no other tool knows. `copy` is used for layers, which it never alters.
"""

import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import HyperError, InvalidError, NotFoundError, UnavailableError
from hyperd.host import files, process
from hyperd.image.content import Content, digest_of
from hyperd.image.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Descriptor
from hyperd.image.reference import Named, Source, Transport, canonical, is_tag, parse_digest
from hyperd.image.skopeo_errors import translate
from hyperd.model.image import Digest, Platform

INSPECT_TIMEOUT_S = 90.0
COPY_TIMEOUT_S = 6 * 3600.0  # the end of patience; a copy that stands still ends much earlier
PUSH_RETRIES = 3
MAX_TAGS = 10_000
_READ_BY_SKOPEO = Path("/etc/containers/policy.json")
_SHIPPED = Path("/usr/share/containers/policy.json")
_SIGNATURES = Path("/var/lib/containers/sigstore")
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


@dataclass(frozen=True, slots=True)
class Remote:
    """One image as skopeo is asked for it."""

    source: Source
    platform: Platform
    tls_insecure: bool = False
    digest: Digest | None = None  # of the manifest chosen from an index
    authfile: Path | None = None  # a caller's own, for as long as the call takes

    @property
    def reference(self) -> str:
        source = self.source
        if source.transport is Transport.DOCKER and source.named is not None:
            named = canonical(source.named)
            if self.digest is not None:
                named = Named(named.registry, named.path, "", self.digest)
            return f"docker://{named}"
        if source.transport is Transport.DOCKER_DAEMON:
            return f"docker-daemon:{source.named}"
        return f"{source.transport}:{source.path}" + (f":{source.inner}" if source.inner else "")

    @property
    def skips_tls_verify(self) -> bool:
        return self.source.transport is Transport.DOCKER and (self.tls_insecure or self.source.is_loopback)


class Skopeo:
    """``authfile``: logins, when not in skopeo's own places (containers-auth.json(5))."""

    def __init__(
        self, root: Path, temporary: Path, *, skopeo: str = "skopeo", authfile: Path | None = None
    ) -> None:
        self._policy = root / "policy.json"
        self._known = root / "skopeo"
        self._temporary = temporary
        self._skopeo = skopeo
        self._authfile = authfile

    def policy_path(self) -> Path:
        """Blocks. As skopeo looks; without any it would refuse all, and Debian's package for it may be absent."""
        home = Path(os.environ.get("HOME") or "/root") / ".config/containers/policy.json"
        for path in (home, _READ_BY_SKOPEO, _SHIPPED):
            if path.exists():
                return path
        if not self._policy.is_file():
            files.write_atomic(self._policy, json.dumps(_POLICY).encode())
        return self._policy

    async def raw_manifest(self, remote: Remote) -> bytes:
        argv = ["inspect", "--raw", *self._access("", remote), remote.reference]
        return await self._read(argv, remote, MAX_MANIFEST_BYTES)

    async def raw_config(self, remote: Remote) -> bytes:
        argv = [
            *_override(remote.platform),
            "inspect",
            "--config",
            "--raw",
            *self._access("", remote),
            remote.reference,
        ]
        return await self._read(argv, remote, MAX_CONFIG_BYTES)

    async def child_manifest(self, remote: Remote, child: Descriptor) -> bytes:
        """The manifest that an index names. Blocks shortly for layouts and archives, which skopeo cannot be asked."""
        if remote.source.transport is Transport.DOCKER:
            raw = await self.raw_manifest(remote)
        else:
            raw = _read_child(remote.source, child)
        if digest_of(raw) != child.digest:
            raise UnavailableError(
                "the manifest is not the one that its digest names",
                subject=str(remote.source),
                evidence=f"expected {child.digest}, got {digest_of(raw)}",
            )
        return raw

    async def copy_layers(self, remote: Remote, layout: Path, blobs: Path) -> None:
        """Whole blobs appear in ``blobs``/sha256; those under way are ``layout``/oci-put-blob*.

        Raises what ``skopeo_errors`` says; killed with all it has begun when cancelled.
        """
        argv = [
            *_override(remote.platform),
            "copy",
            "--quiet",
            "--remove-signatures",
            "--dest-oci-accept-uncompressed-layers",
            f"--dest-shared-blob-dir={blobs}",
            *self._access("src-", remote),
            remote.reference,
            f"oci:{layout}",
        ]
        await self._run(argv, remote, COPY_TIMEOUT_S)

    async def version(self) -> tuple[int, ...]:
        """() when it does not tell."""
        finished = await process.run([self._skopeo, "--version"], timeout_s=INSPECT_TIMEOUT_S)
        found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", finished.stdout.decode(errors="replace"))
        return tuple(int(each) for each in found.groups() if each) if found else ()

    async def show(self, remote: Remote, policy: Path, target: str, authfile: Path) -> None:
        """Copy the image to ``target`` if ``policy`` admits it, unchanged. Raises DeniedError when it does not."""
        source_auth = remote.authfile or self._authfile
        argv = [
            self._skopeo,
            f"--policy={policy}",
            f"--tmpdir={self._temporary}",
            *_override(remote.platform),
            "copy",
            "--quiet",
            "--preserve-digests",
            "--remove-signatures",
            *(["--src-tls-verify=false"] if remote.skips_tls_verify else []),
            *([f"--src-authfile={source_auth}"] if source_auth is not None else []),
            "--dest-tls-verify=false",
            f"--dest-authfile={authfile}",
            remote.reference,
            target,
        ]
        # What it would remember of our blobs is worth nothing to later pushes.
        env = self.environment | {"XDG_DATA_HOME": str(policy.parent)}
        finished = await process.run(argv, timeout_s=INSPECT_TIMEOUT_S, env=env)
        if finished.returncode != 0:
            raise translate(finished.stderr_tail, str(remote.source))

    async def archive_tags(self, source: Source) -> list[str]:
        """What a docker-archive calls its images."""
        remote = Remote(source, Platform("linux", ""))
        out = await self._run(["list-tags", f"docker-archive:{source.path}"], remote, INSPECT_TIMEOUT_S)
        try:
            tags = json.loads(out)["Tags"] or []
            return [tag for tag in tags if isinstance(tag, str)][:1000]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidError("the archive's tags cannot be read", subject=str(source)) from error

    async def repository_tags(self, remote: Remote) -> list[str]:
        """Of a repository in a registry, those that are tags by Docker's rules."""
        named = remote.source.named
        if remote.source.transport is not Transport.DOCKER or named is None:
            raise InvalidError("only a registry's repository has tags", subject=str(remote.source))
        argv = ["list-tags", *self._access("", remote), f"docker://{named.repository}"]
        out = await self._run(argv, remote, INSPECT_TIMEOUT_S)
        try:
            tags = json.loads(out)["Tags"] or []
            return [tag for tag in tags if is_tag(tag)][:MAX_TAGS]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnavailableError(
                "the repository's tags cannot be read", subject=named.repository
            ) from error

    def pushing(self, remote: Remote, directory: Path, digest_file: Path) -> list[str]:
        """What sends the image in ``directory`` (a `dir:`) to ``remote``, and tells every step to standard error."""
        return [
            *self._head(),
            "--debug",
            "copy",
            "--preserve-digests",
            "--remove-signatures",
            f"--retry-times={PUSH_RETRIES}",
            f"--digestfile={digest_file}",
            *self._access("dest-", remote),
            f"dir:{directory}",
            remote.reference,
        ]

    @property
    def environment(self) -> dict[str, str]:
        """With a place of ours for what skopeo knows of blobs in registries, so that it can mount instead of send.

        It has no option for that: as root it is /var/lib/containers/cache, else below XDG_DATA_HOME. Signatures
        beside /var/lib/containers have no option either, so a host that has some there keeps its ways.
        """
        if os.geteuid() == 0 and _SIGNATURES.is_dir():
            return dict(os.environ)
        return {**os.environ, "_CONTAINERS_ROOTLESS_UID": "1", "XDG_DATA_HOME": str(self._known)}

    def _head(self) -> list[str]:
        """What these commands move was admitted before (admission.py), or comes out of our own store."""
        return [self._skopeo, "--insecure-policy", f"--tmpdir={self._temporary}"]

    def _access(self, side: str, remote: Remote) -> list[str]:
        options = [f"--{side}tls-verify=false"] if remote.skips_tls_verify else []
        authfile = remote.authfile or self._authfile
        return [*options, f"--authfile={authfile}"] if authfile is not None else options

    async def _read(self, argv: list[str], remote: Remote, limit: int) -> bytes:
        out = await self._run(argv, remote, INSPECT_TIMEOUT_S)
        if len(out) > limit:
            raise InvalidError(f"the answer is larger than {limit >> 20} MiB", subject=str(remote.source))
        return out

    async def _run(self, argv: list[str], remote: Remote, timeout_s: float) -> bytes:
        finished = await process.run([*self._head(), *argv], timeout_s=timeout_s, env=self.environment)
        if finished.returncode != 0:
            raise translate(finished.stderr_tail, str(remote.source))
        return finished.stdout


def written_by_copy(layout: Path, content: Content) -> set[Digest]:
    """The manifest and the config that `skopeo copy` itself has put beside the layers. Blocks."""
    try:
        index = json.loads((layout / "index.json").read_bytes())
        manifest = parse_digest(index["manifests"][0]["digest"], "manifest")
        body = json.loads(content.read(manifest, limit=MAX_MANIFEST_BYTES))
        return {manifest, parse_digest(body["config"]["digest"], "config")}
    except (OSError, ValueError, KeyError, IndexError, TypeError, HyperError):
        return set()  # nothing was copied


def _override(platform: Platform) -> list[str]:
    options = [f"--override-os={platform.os}", f"--override-arch={platform.architecture}"]
    return [*options, f"--override-variant={platform.variant}"] if platform.variant else options


def _read_child(source: Source, child: Descriptor) -> bytes:
    name = f"blobs/sha256/{child.digest.removeprefix('sha256:')}"
    with files.file_errors(source.path):
        if source.transport is Transport.OCI:
            with (Path(source.path) / name).open("rb") as file:
                return file.read(MAX_MANIFEST_BYTES + 1)
        if source.transport is Transport.OCI_ARCHIVE:
            return _read_member(source, name)
    raise InvalidError(
        f"{source.transport}: an index of several platforms is not expected here", subject=str(source)
    )


def _read_member(source: Source, name: str) -> bytes:
    try:
        with tarfile.open(source.path, "r|*") as archive:
            for member in archive:
                if member.name.removeprefix("./") == name and member.isreg():
                    file = archive.extractfile(member)
                    return file.read(MAX_MANIFEST_BYTES + 1) if file is not None else b""
    except tarfile.TarError as error:
        raise InvalidError("this is not an image", subject=str(source), evidence=str(error)) from error
    raise NotFoundError(
        "the archive lacks a manifest that its index names", subject=str(source), evidence=name
    )
