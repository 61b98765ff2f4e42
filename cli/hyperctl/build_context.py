# SPDX-License-Identifier: Apache-2.0
"""What `hyper build PATH|URL|-` builds from, and which Dockerfile: read here, sent as it is read."""

import os
import re
import stat
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyper.v1 import build_pb2 as pb
from hyperctl.dockerignore import Ignored
from hyperctl.errors import NOT_FOUND, CliError, InvalidError
from hyperctl.pack import BLOCK, pack_entry
from hyperctl.packed import is_packed, split_repository, unpacked
from hyperctl.pipes import CHUNK_BYTES, STANDARD

MAX_DOCKERFILE_BYTES = 1 << 20
_ZSTD_HINT = "zstd -d | hyper build -"


@dataclass(frozen=True, slots=True)
class Context:
    """``options`` are those that it settles; ``pieces`` its plain tar."""

    options: pb.BuildOptions
    pieces: Iterator[bytes]


def open_context(place: str, dockerfile: str) -> Context:
    """``dockerfile`` "" is the default. Raises CliError."""
    if place == STANDARD and dockerfile == STANDARD:
        raise InvalidError(
            "the context and the Dockerfile cannot both come from standard input", subject="build"
        )
    if place == STANDARD:
        return _from_standard_input(dockerfile)
    if repository := split_repository(place):
        if dockerfile == STANDARD:
            return Context(_git(*repository, _read(STANDARD), ""), iter(()))
        return Context(_git(*repository, b"", dockerfile), iter(()))
    if re.match(r"https?://", place):
        raise InvalidError("hyper fetches no URLs", subject=place, hint=f"curl -L {place} | hyper build -")
    return _from_directory(place, dockerfile)


def _from_directory(place: str, dockerfile: str) -> Context:
    top = Path(place)
    if not top.is_dir():
        raise CliError("path not found, or not a directory", subject=place, exit_status=NOT_FOUND)
    named = _place_of(top, dockerfile)
    if not dockerfile and not named.exists():
        raise CliError(
            "failed to read dockerfile: there is no Dockerfile in it",
            subject=place,
            hint="`-f FILE` names another",
            exit_status=NOT_FOUND,
        )
    text = _read(dockerfile if dockerfile == STANDARD else str(named))
    if not text.strip():
        raise InvalidError("the Dockerfile cannot be empty", subject=dockerfile or str(named))
    return Context(pb.BuildOptions(dockerfile=text), pack_context(top, _ignored(top, named)))


def _place_of(top: Path, dockerfile: str) -> Path:
    """Docker's rule: beside the caller, else in the context."""
    if dockerfile in ("", STANDARD):
        return top / "Dockerfile"
    here = Path(dockerfile)
    return here if here.is_absolute() or here.exists() else top / dockerfile


def _ignored(top: Path, dockerfile: Path) -> Ignored:
    """A Dockerfile's own list goes before the context's."""
    for place in (dockerfile.with_name(f"{dockerfile.name}.dockerignore"), top / ".dockerignore"):
        try:
            return Ignored(place.read_text(errors="surrogateescape"))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CliError(f"cannot be read: {error.strerror}", subject=str(place)) from error
    return Ignored("")


def _read(path: str) -> bytes:
    try:
        if path == STANDARD:
            data = sys.stdin.buffer.read(MAX_DOCKERFILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_DOCKERFILE_BYTES + 1)
    except FileNotFoundError as error:
        raise CliError(
            "failed to read dockerfile: no such file", subject=path, exit_status=NOT_FOUND
        ) from error
    except OSError as error:
        raise CliError(f"failed to read dockerfile: {error.strerror}", subject=path) from error
    if len(data) > MAX_DOCKERFILE_BYTES:
        raise InvalidError(f"is larger than {MAX_DOCKERFILE_BYTES >> 20} MiB", subject=path)
    return data


def pack_context(top: Path, ignored: Ignored) -> Iterator[bytes]:
    """A directory appears before the first thing in it that is wanted."""
    seen: dict[tuple[int, int], str] = {}
    told: set[str] = {""}
    waiting = _listed(top, "")
    while waiting:
        name = waiting.pop()
        path = top / name
        try:
            about = path.lstat()
            out = ignored.leaves_out(name)
            if stat.S_ISDIR(about.st_mode) and (not out or ignored.may_take_back_below(name)):
                waiting += _listed(path, f"{name}/")
            if out:
                continue
            for parent in _untold(name, told):
                yield from pack_entry(str(top / parent), parent, (top / parent).lstat(), seen)
            if name not in told:
                yield from pack_entry(str(path), name, about, seen)
        except OSError as error:
            raise CliError(f"cannot be read: {error.strerror or error}", subject=str(path)) from error
        told.add(name)
    yield bytes(2 * BLOCK)


def _listed(directory: Path, prefix: str) -> list[str]:
    return [f"{prefix}{name}" for name in sorted((each.name for each in os.scandir(directory)), reverse=True)]


def _untold(name: str, told: set[str]) -> Iterator[str]:
    parts = name.split("/")
    for depth in range(1, len(parts)):
        parent = "/".join(parts[:depth])
        if parent not in told:
            told.add(parent)
            yield parent


def _from_standard_input(dockerfile: str) -> Context:
    """A tar, compressed or not, or else a Dockerfile without a context."""
    if sys.stdin.isatty():
        raise InvalidError("refusing to read a context from a terminal", subject="build", hint="redirect")
    first = _fill(b"", tarfile.BLOCKSIZE)
    if is_packed(first, "the context", hint=_ZSTD_HINT) or _is_tar(first):
        options = pb.BuildOptions(dockerfile_path=dockerfile, apply_ignore_file=True)
        return Context(options, unpacked(_rest(first), "the context", hint=_ZSTD_HINT))
    text = _fill(first, MAX_DOCKERFILE_BYTES + 1)
    if len(text) > MAX_DOCKERFILE_BYTES:
        raise InvalidError("is neither a tar nor a Dockerfile", subject="standard input")
    if not text.strip():
        raise InvalidError("the Dockerfile cannot be empty", subject="standard input")
    return Context(pb.BuildOptions(dockerfile=text), iter((bytes(2 * BLOCK),)))


def _fill(data: bytes, size: int) -> bytes:
    while len(data) < size and (more := os.read(0, size - len(data))):
        data += more
    return data


def _rest(first: bytes) -> Iterator[bytes]:
    yield first
    while data := os.read(0, CHUNK_BYTES):
        yield data


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _git(url: str, fragment: str, text: bytes, dockerfile: str) -> pb.BuildOptions:
    """URL[#REF[:DIRECTORY]], as Docker has it."""
    ref, _, directory = fragment.partition(":")
    return pb.BuildOptions(
        dockerfile=text,
        dockerfile_path=dockerfile,
        apply_ignore_file=True,
        git=pb.GitContext(url=url, ref=ref, directory=directory),
    )
