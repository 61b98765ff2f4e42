# SPDX-License-Identifier: Apache-2.0
"""What takes its time, as it goes: of a pull a bar a layer on a terminal, a line a step anywhere else."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO, TypeAlias

from hyper.v1 import image_pb2 as pb
from hyperctl import terminal
from hyperctl.names import shorten_id
from hyperctl.render import printable, render_size

REDRAW_S = 0.08
BAR_CELLS = 30
WORDS: dict[int, str] = {
    pb.LAYER_PHASE_WAITING: "Waiting",
    pb.LAYER_PHASE_DOWNLOADING: "Downloading",
    pb.LAYER_PHASE_CONVERTING: "Extracting",
    pb.LAYER_PHASE_DONE: "Pull complete",
    pb.LAYER_PHASE_EXISTS: "Already exists",
}
FINISHED = frozenset({pb.LAYER_PHASE_DONE, pb.LAYER_PHASE_EXISTS})


@dataclass(frozen=True, slots=True)
class Phases:
    """Docker's words for what is done with a layer; ``barless`` phases show no bytes."""

    words: Mapping[int, str]
    finished: frozenset[int]
    waiting: int

    @property
    def barless(self) -> frozenset[int]:
        return self.finished | {self.waiting}


PULLING = Phases(WORDS, FINISHED, pb.LAYER_PHASE_WAITING)
LOADING = Phases(
    {
        **WORDS,
        pb.LAYER_PHASE_DOWNLOADING: "Loading layer",
        pb.LAYER_PHASE_CONVERTING: "Loading layer",
        pb.LAYER_PHASE_DONE: "Layer loaded",
    },
    FINISHED,
    pb.LAYER_PHASE_WAITING,
)
PUSHING = Phases(
    {
        pb.PUSH_PHASE_WAITING: "Waiting",
        pb.PUSH_PHASE_UPLOADING: "Pushing",
        pb.PUSH_PHASE_DONE: "Pushed",
        pb.PUSH_PHASE_EXISTS: "Layer already exists",
        pb.PUSH_PHASE_MOUNTED: "Mounted",
    },
    frozenset({pb.PUSH_PHASE_DONE, pb.PUSH_PHASE_EXISTS, pb.PUSH_PHASE_MOUNTED}),
    pb.PUSH_PHASE_WAITING,
)
Layer: TypeAlias = pb.LayerProgress | pb.PushProgress


class LayersProgress:
    """Shows LayerProgress or PushProgress messages on ``out``."""

    def __init__(self, out: TextIO, phases: Phases = PULLING, *, quiet: bool = False) -> None:
        self._out = out
        self._phases = phases
        self._quiet = quiet
        self._live = not quiet and _is_live(out)
        self._layers: dict[str, Layer] = {}
        self._drawn = 0
        self._last_draw_s = 0.0

    def show(self, layer: Layer) -> None:
        before = self._layers.get(layer.digest)
        self._layers[layer.digest] = layer
        if self._quiet:
            return
        new_phase = before is None or before.phase != layer.phase
        if self._live:
            if new_phase or time.monotonic() - self._last_draw_s >= REDRAW_S:
                self._draw()
        elif new_phase:
            self.note(f"{shorten_id(layer.digest)}: {self._phases.words.get(layer.phase, 'Preparing')}")

    def note(self, text: str) -> None:
        """A line that stays: above the bars, or below them when all they show is done."""
        if self._quiet:
            return
        if (
            self._live
            and self._layers
            and all(layer.phase in self._phases.finished for layer in self._layers.values())
        ):
            self._draw()
            self._layers, self._drawn = {}, 0
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0
        self._out.write(printable(text) + "\n")
        if self._live and self._layers:
            self._draw()
        self._out.flush()

    def finish(self) -> None:
        """The bars stay where they are; what is printed next comes below."""
        if self._live and self._layers:
            self._draw()
        self._live, self._drawn = False, 0

    def _draw(self) -> None:
        self._last_draw_s = time.monotonic()
        columns, rows = terminal.find_size(self._out.fileno()) or (80, 24)
        lines = [line[: columns - 1] for line in self._lines(max(1, rows - 2))]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._out.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self._drawn = len(lines)

    def _lines(self, limit: int) -> list[str]:
        layers = list(self._layers.values())
        if len(layers) > limit:  # then what is done is only counted
            finished = self._phases.finished
            done = [layer for layer in layers if layer.phase in finished]
            open_ones = [layer for layer in layers if layer.phase not in finished][: limit - 1]
            counted = f"{len(done)} of {len(layers)} layers complete"
            return [counted, *(render_layer(layer, self._phases) for layer in open_ones)]
        return [render_layer(layer, self._phases) for layer in layers]


class ByteProgress:
    """`imported 12.3MB/45.6MB`, in place, on a terminal; nothing anywhere else."""

    def __init__(self, out: TextIO, verb: str, *, total_bytes: int = 0, quiet: bool = False) -> None:
        self._out = out
        self._verb = verb
        self._total_bytes = total_bytes
        self._live = not quiet and _is_live(out)
        self._done_bytes = 0
        self._last_draw_s = 0.0

    def add(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        if self._live and time.monotonic() - self._last_draw_s >= REDRAW_S:
            self._draw("")

    def finish(self) -> None:
        """How far it came stays."""
        if self._live and self._done_bytes:
            self._draw("\n")
        self._live = False

    def _draw(self, end: str) -> None:
        self._last_draw_s = time.monotonic()
        total = f"/{render_size(self._total_bytes)}" if self._total_bytes else ""
        self._out.write(f"\r{self._verb} {render_size(self._done_bytes)}{total}\x1b[K{end}")
        self._out.flush()


def render_layer(layer: Layer, phases: Phases = PULLING) -> str:
    """`4f4fb700ef54: Downloading [=====>      ]  12.3MB/45.6MB`"""
    head = f"{shorten_id(layer.digest)}: {phases.words.get(layer.phase, 'Preparing')}"
    if layer.phase in phases.barless:
        return head
    if not layer.total_bytes:
        return f"{head} {render_size(layer.done_bytes)}" if layer.done_bytes else head
    done_bytes = min(layer.done_bytes, layer.total_bytes)
    filled = BAR_CELLS * done_bytes // layer.total_bytes
    bar = ("=" * filled + ">" * (filled < BAR_CELLS)).ljust(BAR_CELLS)
    return f"{head} [{bar}] {render_size(done_bytes)}/{render_size(layer.total_bytes)}"


def _is_live(out: TextIO) -> bool:
    try:
        return out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except ValueError:  # closed
        return False
