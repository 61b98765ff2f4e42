# SPDX-License-Identifier: Apache-2.0
"""Which images a Dockerfile builds on. Pure; the engine is the one who understands the rest of it.

What is not understood here is left to the engine, which then says what is wrong. So nothing raises, and an image too
few is an image that the engine does not find. Grammar: github.com/moby/buildkit frontend/dockerfile/parser.
"""

import bisect
import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from hyperd.build.words import expand
from hyperd.image import split_words

MAX_BYTES = 1 << 20
MAX_IMAGES = 100
MAX_STAGES = 1000
MAX_NAME = 500  # letters of an image's name; its repository has at most 255, and its tag 128
MAX_VALUES = 1 << 20  # letters of all variables that are known at once
SCRATCH = "scratch"
_DIRECTIVE = re.compile(r"#\s*([A-Za-z]+)\s*=\s*(\S+)\s*$")
_HEREDOC = re.compile(r"\d*<<([-~]?)([^<]+)")  # a whole word: neither a here-string nor what stands in quotes
_WITH_HEREDOCS = frozenset({"RUN", "COPY", "ADD"})


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str  # in capitals
    rest: str


class Values(dict[str, str]):
    """Variables. A Dockerfile that makes more of them than anybody means is left with empty ones."""

    def __init__(self, values: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(values)
        self._letters = 0

    def put(self, name: str, value: str) -> None:
        self._letters += len(value)
        self[name] = value if self._letters <= MAX_VALUES else ""


@dataclass(slots=True)
class Stage:
    base: str | None  # None: not understood
    name: str = ""
    uses: set[str] = field(default_factory=set)  # of COPY --from and RUN --mount


class Lines:
    """Those of a file that are still to come."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._at = 0
        self._last = {line: at for at, line in enumerate(lines)}
        self._last_stripped = {line.lstrip("\t"): at for at, line in enumerate(lines)}

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._at == len(self._lines):
            raise StopIteration
        self._at += 1
        return self._lines[self._at - 1]

    def skip_past(self, end: str, *, strips: bool) -> None:
        """Nothing is skipped where no such line comes; the engine will say so."""
        if (self._last_stripped if strips else self._last).get(end, -1) < self._at:
            return
        while True:
            line = next(self)
            if (line.lstrip("\t") if strips else line) == end:
                return


class Places:
    """Where stages stand, by name."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._of: dict[str, list[int]] = {}
        for at, stage in enumerate(stages):
            if stage.name:
                self._of.setdefault(stage.name, []).append(at)

    def before(self, end: int, name: str) -> int | None:
        """The last of that name, or number, before ``end``."""
        if name.isdecimal() and len(name) < len(str(MAX_STAGES)) + 1 and int(name) < end:
            return int(name)
        of_that_name = self._of.get(name.lower(), [])
        found = bisect.bisect_left(of_that_name, end)
        return of_that_name[found - 1] if found else None


def base_images(
    text: bytes, *, build_args: Mapping[str, str], target: str = "", platform_args: Mapping[str, str]
) -> list[str]:
    """Those that ``target`` (the last stage) needs, as they stand there, in order."""
    escape, lines = _directives(text[:MAX_BYTES].decode(errors="replace").removeprefix("\ufeff").splitlines())
    stages = _stages(_instructions(lines, escape), escape, build_args, platform_args)
    found: dict[str, None] = {}
    places = Places(stages)
    for at in _needed(stages, places, target):
        for image in (stages[at].base, *sorted(stages[at].uses)):
            is_image = image and image != SCRATCH and not image.isdecimal()
            if image and is_image and places.before(at, image) is None:
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
    waiting = Lines(lines)
    for first in waiting:
        if not first.strip() or first.lstrip().startswith("#"):
            continue
        parts = [first.strip()]
        while _continues(parts[-1], escape):
            parts[-1] = parts[-1].rstrip()[:-1]
            following = next(waiting, None)
            while following is not None and (
                not following.strip() or following.lstrip().startswith("#")
            ):  # comments, and empty lines as well, do not end an instruction
                following = next(waiting, None)
            if following is None:
                break
            parts.append(following.rstrip())
        logical = "".join(parts)
        name, _, rest = logical.partition(" ") if " " in logical else logical.partition("\t")
        instruction = Instruction(name.upper(), rest.strip())
        if instruction.name in _WITH_HEREDOCS:
            for strips, end in _heredocs(instruction.rest):
                waiting.skip_past(end, strips=strips)
        yield instruction


def _continues(line: str, escape: str) -> bool:
    return line.rstrip(" \t").endswith(escape)


def _heredocs(rest: str) -> Iterator[tuple[bool, str]]:
    """Whether tabs before its end do not count, and the line that ends it."""
    for word in split_words(rest):
        if found := _HEREDOC.fullmatch(word):
            with contextlib.suppress(ValueError):  # a quote that does not end
                yield found[1] == "-", "".join(shlex.split(found[2]))


def _stages(
    instructions: Iterator[Instruction],
    escape: str,
    build_args: Mapping[str, str],
    platform_args: Mapping[str, str],
) -> list[Stage]:
    """ARGs before the first FROM are known to every FROM; those of a stage to that stage."""
    stages: list[Stage] = []
    outer = Values(platform_args)
    values = outer
    for instruction in instructions:
        if instruction.name == "FROM":
            if len(stages) == MAX_STAGES:
                break
            stages.append(_from(instruction.rest, outer, escape))
            values = Values()
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
    return Stage(_image(words[0], outer, escape) if words else None, name)


def _declare(
    rest: str, values: Values, outer: Mapping[str, str], build_args: Mapping[str, str], escape: str
) -> None:
    for word in rest.split():
        name, equals, default = word.partition("=")
        if name in build_args:
            values.put(name, build_args[name])
        elif equals:
            values.put(name, expand(default, values, escape) or "")
        elif name in outer:
            values.put(name, outer[name])


def _set(rest: str, values: Values, escape: str) -> None:
    first, _, value = rest.partition(" ")
    if "=" not in first:  # ENV NAME all of the rest
        values.put(first, expand(value.strip(), values, escape) or "")
        return
    for word in rest.split():
        name, equals, value = word.partition("=")
        if equals:
            values.put(name, expand(value, values, escape) or "")


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
            image = _image(text, values, escape)
            if image:
                yield image


def _image(word: str, values: Mapping[str, str], escape: str) -> str | None:
    name = expand(word, values, escape)
    return name if name is not None and len(name) <= MAX_NAME else None


def _flags(rest: str) -> Iterator[str]:
    for word in rest.split():
        if not word.startswith("--"):
            return
        try:
            yield "".join(shlex.split(word))
        except ValueError:  # a quote that does not end
            yield word


def _needed(stages: Sequence[Stage], places: Places, target: str) -> list[int]:
    """The target and what it stands on, in the order of the file."""
    if not stages:
        return []
    last = len(stages) - 1 if not target else places.before(len(stages), target)
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
            earlier = places.before(at, image) if image else None
            if earlier is not None:
                waiting.append(earlier)
    return sorted(wanted)
