# SPDX-License-Identifier: Apache-2.0
"""Files of containers in the hyperd without machines: tars in memory."""
# ruff: noqa: N802 - the methods have the names of the contract

import io
import stat
import tarfile
from dataclasses import dataclass, field

import grpc

from hyper.v1 import container_pb2 as pb
from hyper.v1 import system_pb2
from tests.fakes.daemon_state import Context, FakeDaemon, abort, digest, whole

MESSAGE_BYTES = 1 << 20


@dataclass
class FakePath:
    """What ReadPath says of one path. ``data``: the tar, as honest or not as a test wants it."""

    mode: int = stat.S_IFDIR | 0o755
    data: bytes = b""
    link_target: bytes = b""


@dataclass
class FakeFiles:
    """Of all containers: by path; ``written`` has what WritePath got."""

    paths: dict[bytes, FakePath] = field(default_factory=dict)
    written: list[tuple[pb.WritePathOptions, bytes]] = field(default_factory=list)
    changes: list[pb.Change] = field(default_factory=list)
    root: bytes = b""  # what an export gives
    messages: int = 0  # that an export has given

    def add(self, path: str, tar: bytes = b"", *, mode: int = stat.S_IFDIR | 0o755, link: str = "") -> None:
        self.paths[path.encode()] = FakePath(mode, tar, link.encode())


def tar_of(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """Files by name and content, anything else as tarfile has it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(b"x" * member.size))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def folder(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    return special(name, tarfile.DIRTYPE, mode=mode)


def special(name: str, kind: bytes, target: str = "", *, mode: int = 0o777) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


class FilesOfContainers:
    """Mixed into the container service."""

    _daemon: FakeDaemon

    @property
    def _files(self):
        return self._daemon.files

    async def CommitContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        for done in (1_000_000, 2_500_000):
            yield pb.CommitContainerResponse(done_bytes=done)
        if request.reference:
            self._daemon.add_image(request.reference)
        yield pb.CommitContainerResponse(image_id=digest(f"commit of {container.id}"))

    async def ListChanges(self, request, context):
        await self._daemon.check(request, context)
        await self._daemon.require_container(request.container, context)
        for change in self._files.changes:
            yield pb.ListChangesResponse(changes=[change])

    async def ExportContainer(self, request, context):
        await self._daemon.check(request, context)
        await self._daemon.require_container(request.container, context)
        for data in _messages(self._files.root):
            self._files.messages += 1
            yield pb.ExportContainerResponse(data=data)

    async def ReadPath(self, request, context):
        await self._daemon.check(request, context)
        await self._daemon.require_container(request.container, context)
        found = self._files.paths.get(request.path)
        if found is None:
            detail = system_pb2.ErrorDetail(
                brief="no such file or directory", subject=request.path.decode(errors="replace")
            )
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        assert found is not None
        name = request.path.rpartition(b"/")[2] or b"/"
        yield pb.ReadPathResponse(stat=pb.PathStat(name=name, mode=found.mode, link_target=found.link_target))
        for data in _messages(found.data):
            yield pb.ReadPathResponse(data=data)

    async def WritePath(self, requests, context: Context):
        first = await anext(aiter(requests))
        await self._daemon.check(first.options, context)
        await self._daemon.require_container(first.options.container, context)
        data = await whole(requests)
        self._files.written.append((first.options, data))
        return pb.WritePathResponse()


def _messages(data: bytes) -> list[bytes]:
    return [data[at : at + MESSAGE_BYTES] for at in range(0, len(data), MESSAGE_BYTES)]
