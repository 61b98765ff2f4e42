# SPDX-License-Identifier: Apache-2.0
"""One image to one registry: skopeo sends, we watch.

skopeo is given a throw-away `dir:` of links to our blobs, which keeps a manifest as it is, whosever schema it has (in a
layout skopeo finds only OCI's, and copies Docker's rewritten). What it does with a blob it says in its debug log, which
is read for this and nothing else. How far it has come is where it stands in the blob's file.
"""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from hyperd.errors import TimeoutExpiredError, UnavailableError
from hyperd.host import files, process
from hyperd.host.workers import Workers
from hyperd.image.content import Content, hex_of
from hyperd.image.layers import one_error
from hyperd.image.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest
from hyperd.image.skopeo_errors import translate_push
from hyperd.image.transport import COPY_TIMEOUT_S, Remote, Skopeo
from hyperd.model.image import Digest, PushPhase, PushProgress

LOOK_EVERY_S = 0.2
_VERSION = b"Directory Transport Version: 1.1\n"
_MAX_LINE_BYTES = 64 << 10
_DIGEST = r"(sha256:[0-9a-f]{64})"
_SENT = re.compile(rf"Upload of layer {_DIGEST} complete")
_SKIPPED = re.compile(rf"Skipping blob {_DIGEST} \(already present\)")
_MOUNTING = re.compile(r"POST \S*[?&]mount=sha256%3A([0-9a-f]{64})")
_ENDED = frozenset({PushPhase.DONE, PushPhase.EXISTS, PushPhase.MOUNTED})

Tell = Callable[[PushProgress], None]


class Steps:
    """What skopeo's log says of each layer, and where it stands in them."""

    def __init__(self, layers: tuple[Descriptor, ...], tell: Tell) -> None:
        self.sizes = {layer.digest: layer.size_bytes for layer in layers}
        self.phases = dict.fromkeys(self.sizes, PushPhase.WAITING)
        self.positions: dict[Digest, int] = {}
        self.said = 0
        self._mounting: set[Digest] = set()
        self._tell = tell
        for digest in self.sizes:
            self._say(digest, 0)

    def hear(self, line: str) -> None:
        self.said += 1
        if found := _MOUNTING.search(line):
            self._mounting.add(Digest(f"sha256:{found[1]}"))
        elif found := _SENT.search(line):
            self._end(Digest(found[1]), PushPhase.DONE)
        elif found := _SKIPPED.search(line):
            digest = Digest(found[1])
            self._end(digest, PushPhase.MOUNTED if digest in self._mounting else PushPhase.EXISTS)

    def see(self, positions: dict[Digest, int]) -> None:
        for digest, position in positions.items():
            if digest in self.phases and self.phases[digest] not in _ENDED and position:
                self.phases[digest] = PushPhase.UPLOADING
                if self.positions.get(digest) != position:
                    self._say(digest, min(position, self.sizes[digest]))
        self.positions = positions

    def finish(self) -> None:
        """skopeo has succeeded: whatever its log did not say has been sent."""
        for digest, phase in self.phases.items():
            if phase not in _ENDED:
                self._end(digest, PushPhase.DONE)

    @property
    def mark(self) -> tuple[object, ...]:
        """Changes while anything goes on."""
        return self.said, sorted(self.positions.items())

    def _end(self, digest: Digest, phase: PushPhase) -> None:
        if digest in self.phases and self.phases[digest] not in _ENDED:
            self.phases[digest] = phase
            self._say(digest, self.sizes[digest])

    def _say(self, digest: Digest, done_bytes: int) -> None:
        self._tell(PushProgress(digest, self.phases[digest], done_bytes, self.sizes[digest]))


class Uploads:
    def __init__(
        self, skopeo: Skopeo, content: Content, workers: Workers, temporary: Path, stall_timeout_s: float
    ) -> None:
        self._skopeo = skopeo
        self._content = content
        self._workers = workers
        self._temporary = temporary
        self._stall_timeout_s = stall_timeout_s

    async def send(self, remote: Remote, digest: Digest, manifest: Manifest, tell: Tell) -> int:
        """Returns the manifest's size. The image's digests stay pinned meanwhile.

        Raises UnavailableError (registry, or a blob that is gone or damaged here), DeniedError, NotFoundError.
        """
        directory = self._temporary / f"push-{secrets.token_hex(8)}"
        digest_file = self._temporary / f"{directory.name}.digest"
        try:
            size = await self._workers.call_while_wanted(lambda _: self._prepare(directory, digest, manifest))
            steps = Steps(manifest.layers, tell)
            await self._copy(remote, self._skopeo.pushing(remote, directory, digest_file), steps)
            await self._workers.call(_require_same, digest_file, digest, str(remote.source))
            steps.finish()
            return size
        finally:
            digest_file.unlink(missing_ok=True)
            await self._workers.call(files.remove_tree, directory)

    def _prepare(self, directory: Path, digest: Digest, manifest: Manifest) -> int:
        with files.file_errors(directory):
            files.make_directory(directory, 0o700)
            raw = self._content.read(digest, limit=MAX_MANIFEST_BYTES)
            (directory / "version").write_bytes(_VERSION)
            (directory / "manifest.json").write_bytes(raw)
            sizes = {each.digest: each.size_bytes for each in (manifest.config, *manifest.layers)}
            for each, size_bytes in sizes.items():
                blob = self._content.path(each)
                if not blob.is_file() or blob.stat().st_size != size_bytes:
                    raise UnavailableError(
                        "a blob of the image is not here any more",
                        subject=each,
                        hint="`hyper pull` the image again",
                    )
                (directory / hex_of(each)).symlink_to(blob)
        return len(raw)

    async def _copy(self, remote: Remote, argv: list[str], steps: Steps) -> None:
        tail: list[str] = []
        try:
            async with (
                process.spawn(argv, env=self._skopeo.environment) as child,
                asyncio.timeout(COPY_TIMEOUT_S),
                one_error(),
                asyncio.TaskGroup() as tasks,
            ):
                tasks.create_task(_drain(child.stdout))
                ended = tasks.create_task(_listen(child, steps, tail))
                await self._watch(child.pid, ended, steps, str(remote.source))
        except TimeoutError as error:
            raise TimeoutExpiredError(
                f"not sent after {COPY_TIMEOUT_S / 3600:g} h", subject=str(remote.source)
            ) from error
        if child.returncode != 0:
            raise translate_push("\n".join(tail), str(remote.source))

    async def _watch(self, pid: int, ended: "asyncio.Task[None]", steps: Steps, subject: str) -> None:
        clock = asyncio.get_running_loop().time
        mark, since = steps.mark, clock()
        blobs = (self._content.shared_blob_dir / "sha256").resolve()
        while not ended.done():
            await asyncio.wait({ended}, timeout=LOOK_EVERY_S)
            steps.see(await self._workers.call(_positions, pid, blobs))
            if steps.mark != mark:
                mark, since = steps.mark, clock()
            elif clock() - since > self._stall_timeout_s:
                raise UnavailableError(
                    f"the registry has taken nothing for {self._stall_timeout_s:g} s", subject=subject
                )


def _positions(pid: int, blobs: Path) -> dict[Digest, int]:
    """How far a process has read each of the blobs that it has open."""
    found: dict[Digest, int] = {}
    with contextlib.suppress(OSError):  # it has ended
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # closed meanwhile
                target = link.readlink()
                if target.parent == blobs:
                    position = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split(maxsplit=2)[1]
                    digest = Digest(f"sha256:{target.name}")
                    found[digest] = max(found.get(digest, 0), int(position))
    return found


def _require_same(digest_file: Path, digest: Digest, subject: str) -> None:
    with files.file_errors(digest_file):
        sent = digest_file.read_text()[:200].strip()
    if sent != digest:
        raise UnavailableError(
            "the registry has another manifest than was sent",
            subject=subject,
            evidence=f"{sent}, not {digest}",
        )


async def _listen(child: asyncio.subprocess.Process, steps: Steps, tail: list[str]) -> None:
    async for line in _lines(child.stderr):
        steps.hear(line)
        if "level=debug" not in line:
            tail.append(line)
            del tail[:-20]
    await child.wait()


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    """Of those that are too long, as a registry may make them, the beginning."""
    kept = bytearray()
    while stream is not None and (data := await stream.read(65536)):
        *lines, rest = (bytes(kept) + data).split(b"\n")
        for line in lines:
            yield line[:_MAX_LINE_BYTES].decode(errors="replace")
        kept = bytearray(rest[:_MAX_LINE_BYTES])
    if kept:
        yield kept.decode(errors="replace")


async def _drain(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and await stream.read(65536):
        pass
