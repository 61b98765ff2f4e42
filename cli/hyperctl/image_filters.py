# SPDX-License-Identifier: Apache-2.0
"""`hyper images --filter`, with Docker's meaning (moby daemon/images/images.go)."""

import re
from collections.abc import Iterable, Sequence

from hyper.v1 import image_pb2 as pb
from hyperctl import errors, options
from hyperctl.errors import CliError, InvalidError
from hyperctl.moments import parse_moment
from hyperctl.names import familiar_name, split_reference

MIN_ID_PREFIX = 4


def choose(images: Iterable[pb.Image], wanted: Sequence[tuple[str, str]], *, now_ns: int) -> list[pb.Image]:
    """Those that pass all filters; several of `reference` are alternatives, and take the other names away.

    Raises InvalidError, CliError (`before`, `since`: no such image).
    """
    every = list(images)
    chosen = every
    for key, value in wanted:
        match key:
            case "dangling":
                dangling = options.parse_bool("--filter dangling", value)
                chosen = [image for image in chosen if (not image.tags) == dangling]
            case "label":
                chosen = [image for image in chosen if _has_label(image, value)]
            case "before":
                limit_ns = _created_ns(_find(every, value))
                chosen = [image for image in chosen if _created_ns(image) < limit_ns]
            case "since":
                limit_ns = _created_ns(_find(every, value))
                chosen = [image for image in chosen if _created_ns(image) > limit_ns]
            case "until":
                seconds, nanos = parse_moment("--filter until", value, now_ns=now_ns)
                until_ns = seconds * 1_000_000_000 + nanos
                chosen = [image for image in chosen if _created_ns(image) < until_ns]
    if patterns := [_compile(value) for key, value in wanted if key == "reference"]:
        chosen = [kept for image in chosen if (kept := _with_names(image, patterns)) is not None]
    return chosen


def _has_label(image: pb.Image, wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    labels = image.config.labels
    return key in labels and (not equals or labels[key] == value)


def _created_ns(image: pb.Image) -> int:
    return image.created_at.seconds * 1_000_000_000 + image.created_at.nanos


def _find(images: Iterable[pb.Image], name: str) -> pb.Image:
    wanted = familiar_name(name)
    bare = name.removeprefix("sha256:")
    for image in images:
        names = {familiar_name(tag) for tag in image.tags} | {familiar_name(text) for text in image.digests}
        if names & {wanted, f"{wanted}:latest"}:
            return image
        if len(bare) >= MIN_ID_PREFIX and image.id.removeprefix("sha256:").startswith(bare):
            return image
    raise CliError("no such image", subject=name, exit_status=errors.NOT_FOUND)


def _with_names(image: pb.Image, patterns: Sequence[re.Pattern[str]]) -> pb.Image | None:
    """The image with those of its names alone that one of ``patterns`` fits. None: there are none."""

    def fits(reference: str) -> bool:
        name = familiar_name(reference)
        return any(
            pattern.fullmatch(text) for pattern in patterns for text in (name, split_reference(name)[0])
        )

    tags = [tag for tag in image.tags if fits(tag)]
    if not tags and not any(fits(digest) for digest in image.digests):
        return None
    kept = pb.Image()
    kept.CopyFrom(image)
    kept.tags[:] = tags
    return kept


def _compile(pattern: str) -> re.Pattern[str]:
    """Go's path.Match: `*` and `?` stop at a slash, `[a-z]`, `[^a-z]`, and a backslash."""
    parts, rest = [], familiar_name(pattern)
    while rest:
        if rest[0] == "*":
            part, rest = "[^/]*", rest[1:]
        elif rest[0] == "?":
            part, rest = "[^/]", rest[1:]
        elif rest[0] == "[" and (found := re.match(r"\[(\^?)([^\[\]\\]+)\]", rest)):
            inside = re.escape(found[2]).replace(r"\-", "-")
            part, rest = f"[{found[1]}{inside}]", rest[found.end() :]
        elif rest[0] == "\\" and len(rest) > 1:
            part, rest = re.escape(rest[1]), rest[2:]
        elif rest[0] in "[\\":
            raise InvalidError(f"invalid argument {pattern!r}: a bad pattern", subject="--filter reference")
        else:
            part, rest = re.escape(rest[0]), rest[1:]
        parts.append(part)
    try:
        return re.compile("".join(parts))
    except re.error as error:
        raise InvalidError(
            f"invalid argument {pattern!r}: a bad pattern ({error})", subject="--filter reference"
        ) from error
