# SPDX-License-Identifier: Apache-2.0
"""Which images a Dockerfile builds on. Pure; the engine is the one who understands the rest of it.

What is not understood here is left to the engine, which then says what is wrong. So nothing raises, and an image too
few is an image that the engine does not find. Grammar: github.com/moby/buildkit frontend/dockerfile/parser.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hyperd.build.words import expand

MAX_BYTES = 1 << 20
MAX_IMAGES = 100
SCRATCH = "scratch"
_DIRECTIVE = re.compile(r"#\s*([A-Za-z]+)\s*=\s*(\S+)\s*$")
_HEREDOC = re.compile(r"<<(-?)([\"']?)([A-Za-z_][A-Za-z0-9_.]*)\2(?=\s|$)")
_WITH_HEREDOCS = frozenset({"RUN", "COPY", "ADD"})


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str  # in capitals
    rest: str


@dataclass(slots=True)
class Stage:
    base: str | None  # None: not understood
    name: str = ""
    uses: set[str] = field(default_factory=set)  # of COPY --from and RUN --mount


def base_images(
    text: bytes, *, build_args: Mapping[str, str], target: str = "", platform_args: Mapping[str, str]
) -> list[str]:
    """Those that ``target`` (the last stage) needs, as they stand there, in order."""
    escape, lines = _directives(text[:MAX_BYTES].decode(errors="replace").removeprefix("\ufeff").splitlines())
    stages = _stages(_instructions(lines, escape), escape, build_args, platform_args)
    found: dict[str, None] = {}
    for at in _needed(stages, target):
        for image in (stages[at].base, *sorted(stages[at].uses)):
            is_image = image and image != SCRATCH and not image.isdecimal()
            if image and is_image and _stage_of(image, stages[:at]) is None:
                found[image] = None
    return list(found)[:MAX_IMAGES]


def _directives(lines: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The escape character, and what follows the directives at the top."""
    escape = "\\"
    for line in lines:
        found = _DIRECTIVE.match(line.strip())
        if found is None:
            break
        if found[1].lower() == "escape" and found[2] in ("\\", "`"):
            escape = found[2]
    return escape, lines


def _instructions(lines: Sequence[str], escape: str) -> Iterator[Instruction]:
    waiting = iter(lines)
    for first in waiting:
        if not first.strip() or first.lstrip().startswith("#"):
            continue
        logical = first.strip()
        while _continues(logical, escape):
            logical = logical.rstrip()[:-1]
            following = next(waiting, None)
            while following is not None and (
                not following.strip() or following.lstrip().startswith("#")
            ):  # comments, and empty lines as well, do not end an instruction
                following = next(waiting, None)
            if following is None:
                break
            logical += following.rstrip()
        name, _, rest = logical.partition(" ") if " " in logical else logical.partition("\t")
        instruction = Instruction(name.upper(), rest.strip())
        if instruction.name in _WITH_HEREDOCS:
            _skip_heredocs(instruction.rest, waiting)
        yield instruction


def _continues(line: str, escape: str) -> bool:
    return line.rstrip(" \t").endswith(escape)


def _skip_heredocs(rest: str, waiting: Iterator[str]) -> None:
    for found in _HEREDOC.finditer(rest):
        strips, end = found[1] == "-", found[3]
        for line in waiting:
            if (line.lstrip("\t") if strips else line) == end:
                break


def _stages(
    instructions: Iterator[Instruction],
    escape: str,
    build_args: Mapping[str, str],
    platform_args: Mapping[str, str],
) -> list[Stage]:
    """ARGs before the first FROM are known to every FROM; those of a stage to that stage."""
    stages: list[Stage] = []
    outer: dict[str, str] = dict(platform_args)
    values = outer
    for instruction in instructions:
        if instruction.name == "FROM":
            stages.append(_from(instruction.rest, outer, escape))
            values = {}
        elif instruction.name == "ARG":
            _declare(instruction.rest, values, outer if stages else {}, build_args, escape)
        elif instruction.name == "ENV" and stages:
            _set(instruction.rest, values, escape)
        elif instruction.name in ("COPY", "RUN", "ADD") and stages:
            stages[-1].uses |= set(_uses(instruction, values, escape))
    return stages


def _from(rest: str, outer: Mapping[str, str], escape: str) -> Stage:
    words = [word for word in rest.split() if not word.startswith("--")]
    name = words[2].lower() if len(words) == 3 and words[1].upper() == "AS" else ""
    return Stage(expand(words[0], outer, escape) if words else None, name)


def _declare(
    rest: str, values: dict[str, str], outer: Mapping[str, str], build_args: Mapping[str, str], escape: str
) -> None:
    for word in rest.split():
        name, equals, default = word.partition("=")
        if name in build_args:
            values[name] = build_args[name]
        elif equals:
            values[name] = expand(default, values, escape) or ""
        elif name in outer:
            values[name] = outer[name]


def _set(rest: str, values: dict[str, str], escape: str) -> None:
    for word in rest.split():
        name, equals, value = word.partition("=")
        if equals:
            values[name] = expand(value, values, escape) or ""


def _uses(instruction: Instruction, values: Mapping[str, str], escape: str) -> Iterator[str]:
    """What is named by --from=, and by from= in a --mount=."""
    for word in _flags(instruction.rest):
        flag, _, value = word.partition("=")
        if flag == "--from" and instruction.name != "RUN":
            named = [value]
        elif flag == "--mount" and instruction.name == "RUN":
            named = [part[5:] for part in value.split(",") if part.startswith("from=")]
        else:
            continue
        for text in named:
            image = expand(text, values, escape)
            if image:
                yield image


def _flags(rest: str) -> Iterator[str]:
    for word in rest.split():
        if not word.startswith("--"):
            return
        try:
            yield "".join(shlex.split(word))
        except ValueError:  # a quote that does not end
            yield word


def _needed(stages: Sequence[Stage], target: str) -> list[int]:
    """The target and what it stands on, in the order of the file."""
    if not stages:
        return []
    last = len(stages) - 1 if not target else _stage_of(target, stages)
    if last is None:
        return []
    wanted: set[int] = set()
    waiting = [last]
    while waiting:
        at = waiting.pop()
        if at in wanted:
            continue
        wanted.add(at)
        for image in (stages[at].base, *stages[at].uses):
            earlier = _stage_of(image, stages[:at]) if image else None
            if earlier is not None:
                waiting.append(earlier)
    return sorted(wanted)


def _stage_of(name: str, stages: Sequence[Stage]) -> int | None:
    if name.isdecimal() and int(name) < len(stages):
        return int(name)
    for at in range(len(stages) - 1, -1, -1):
        if stages[at].name and stages[at].name == name.lower():
            return at
    return None
