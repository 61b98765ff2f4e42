# SPDX-License-Identifier: Apache-2.0
"""Bringing an image's blobs here: skopeo copies, we watch them arrive.

A layer is announced the moment that its blob is whole, while others are still under way. skopeo says nothing of its
progress to a pipe, so the files that it writes are looked at a few times a second. Which file will be which
layer it does not say either: they are matched in the order in which skopeo starts them, so a layer's progress is an
estimate until the layer is whole. It holds what it gets against its digest only when the last byte has come, so how
much comes is bounded here.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyperd.errors import ExhaustedError, UnavailableError
from hyperd.host import files
from hyperd.host.workers import Workers
from hyperd.image.content import Content
from hyperd.image.layers import one_error
from hyperd.image.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Descriptor
from hyperd.image.reference import Transport
from hyperd.image.transport import Remote, Skopeo
from hyperd.model.image import Digest

# How often what arrives is looked at: a tenth of the time so far, within these. A small layer is not waited for.
LOOK_AFTER_S, LOOK_EVERY_S = 0.02, 0.2
STALL_TIMEOUT_S = 180.0
USUAL_UNPACKING = 3  # how much larger layers become; no manifest says it
_UNDER_WAY = "oci-put-blob*"

Progress = Callable[[Descriptor, int], None]


@dataclass(slots=True)
class Arrivals:
    """Which of an image's layers are whole."""

    layers: Sequence[Descriptor]  # as its manifest has them, also what that has twice
    whole: dict[Digest, asyncio.Event] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = {layer.digest: asyncio.Event() for layer in self.layers}

    def coming(self) -> list[Descriptor]:
        """What skopeo fetches when it begins now: twice, and at once, what is there twice."""
        return [layer for layer in self.layers if not self.whole[layer.digest].is_set()]

    def missing(self) -> list[Descriptor]:
        return list({layer.digest: layer for layer in self.coming()}.values())

    async def wait_whole(self, digest: Digest) -> None:
        await self.whole[digest].wait()


@dataclass(slots=True)
class Estimate:
    """Pairs skopeo's temporary files with the layers that they will be."""

    pairs: dict[str, Digest] = field(default_factory=dict)

    def update(self, sizes: dict[str, int], missing: Sequence[Descriptor]) -> dict[Digest, int]:
        totals = {layer.digest: layer.size_bytes for layer in missing}
        self.pairs = {
            name: digest
            for name, digest in self.pairs.items()
            if name in sizes and sizes[name] <= totals.get(digest, -1)
        }
        for name, size in sizes.items():
            if name not in self.pairs:
                taken = set(self.pairs.values())
                fitting = (
                    digest for digest, total in totals.items() if digest not in taken and size <= total
                )
                digest = next(fitting, None)
                if digest is not None:
                    self.pairs[name] = digest
        return {digest: sizes[name] for name, digest in self.pairs.items()}


class Downloads:
    def __init__(
        self,
        skopeo: Skopeo,
        content: Content,
        workers: Workers,
        *,
        reserve_bytes: int,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        make_room: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._make_room = make_room
        self._skopeo = skopeo
        self._content = content
        self._workers = workers
        self._reserve_bytes = reserve_bytes
        self._stall_timeout_s = stall_timeout_s

    async def look_for(self, arrivals: Arrivals) -> None:
        """Mark what is here already."""
        for digest in await self._workers.call(self._find_whole, arrivals.missing()):
            arrivals.whole[digest].set()

    async def fetch(self, remote: Remote, arrivals: Arrivals, layout: Path, progress: Progress) -> None:
        """Until every layer is whole. Raises ExhaustedError before the start when they cannot all fit."""
        if self._make_room is not None:
            need = sum(layer.size_bytes for layer in arrivals.coming())
            await self._make_room(need * (1 + USUAL_UNPACKING) + self._reserve_bytes)
        await self._workers.call(self._require_room, arrivals.coming())
        async with one_error(), asyncio.TaskGroup() as tasks:
            copying = tasks.create_task(
                self._skopeo.copy_layers(remote, layout, self._content.shared_blob_dir)
            )
            await self._watch(remote, copying, arrivals, layout, progress)
        await self.look_for(arrivals)
        missing = arrivals.missing()
        if missing:
            raise UnavailableError(
                "a layer was not delivered", subject=str(remote.source), evidence=missing[0].digest
            )

    async def _watch(
        self,
        remote: Remote,
        copying: "asyncio.Task[None]",
        arrivals: Arrivals,
        layout: Path,
        progress: Progress,
    ) -> None:
        began = asyncio.get_running_loop().time()
        now, estimate, seen, stalled_since = began, Estimate(), (-1, -1), began
        coming = arrivals.coming()
        times = Counter(layer.digest for layer in coming)
        while not copying.done():
            await asyncio.wait({copying}, timeout=min(max((now - began) / 10, LOOK_AFTER_S), LOOK_EVERY_S))
            await self.look_for(arrivals)
            missing = arrivals.missing()
            sizes = await self._workers.call(_sizes_under_way, layout)
            # One that comes twice may still come when it is whole.
            due = [
                layer
                for layer in coming
                if times[layer.digest] > 1 or not arrivals.whole[layer.digest].is_set()
            ]
            _require_declared(sizes.values(), due, str(remote.source))
            await self._workers.call(self._require_reserve)
            done = estimate.update(sizes, missing)
            for layer in missing:
                if layer.digest in done:
                    progress(layer, done[layer.digest])
            now = asyncio.get_running_loop().time()
            if (len(missing), sum(sizes.values())) != seen or remote.source.transport is not Transport.DOCKER:
                seen, stalled_since = (len(missing), sum(sizes.values())), now
            elif now - stalled_since > self._stall_timeout_s:
                raise UnavailableError(
                    f"the registry has sent nothing for {self._stall_timeout_s:g} s",
                    subject=str(remote.source),
                )

    def _find_whole(self, layers: Sequence[Descriptor]) -> list[Digest]:
        return [layer.digest for layer in layers if self._content.has(layer.digest)]

    def _require_reserve(self) -> None:
        files.require_free(self._content.root, 0, keep_bytes=self._reserve_bytes, what="the image")

    def _require_room(self, layers: Sequence[Descriptor]) -> None:
        need = sum(layer.size_bytes for layer in layers)
        free = files.free_bytes(self._content.root)
        if need + self._reserve_bytes > free:
            raise ExhaustedError(
                "no space left for the image",
                subject=str(self._content.root),
                evidence=f"its layers need {need >> 20} MiB compressed, {free >> 20} MiB are free, "
                f"{self._reserve_bytes >> 20} MiB are kept in reserve",
                hint="remove images, volumes or sandboxes that are not needed",
            )


def _require_declared(sizes: Collection[int], due: Sequence[Descriptor], subject: str) -> None:
    """What is under way may be the layers that are due, and the config and manifest that skopeo writes after them."""
    declared = [layer.size_bytes for layer in due]
    most = max([*declared, MAX_CONFIG_BYTES])
    if (
        any(size > most for size in sizes)
        or sum(sizes) > sum(declared) + MAX_CONFIG_BYTES + MAX_MANIFEST_BYTES
    ):
        raise UnavailableError(
            "the registry sends more than the manifest says",
            subject=subject,
            evidence=f"{max(sizes)} bytes of one blob and {sum(sizes)} in all have come; "
            f"the largest layer that is due has {max(declared, default=0)}, all of them {sum(declared)}",
        )


def _sizes_under_way(layout: Path) -> dict[str, int]:
    """Oldest first."""
    found = []
    for path in layout.glob(_UNDER_WAY):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.append((status.st_ino, path.name, status.st_size))
    return {name: size for _, name, size in sorted(found)}
