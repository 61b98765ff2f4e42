# SPDX-License-Identifier: Apache-2.0
"""`--format json` of `pull`, `push` and `load`: progress for programs, one object a line, in Docker's words.

{"status": "Downloading", "id": "4f4fb700ef54", "progressDetail": {"current": 1, "total": 2}}   {"status": TEXT}
{"aux": {...}}   what came of it, once for each image or tag, at the end
"""

import json
from collections.abc import Mapping
from typing import Any, TextIO

from hyperctl.errors import InvalidError
from hyperctl.names import shorten_id
from hyperctl.progress import PULLING, Layer, LayersProgress, Phases


class JsonProgress:
    """As ``LayersProgress``."""

    def __init__(self, out: TextIO, phases: Phases) -> None:
        self._out = out
        self._phases = phases

    def show(self, layer: Layer) -> None:
        said: dict[str, Any] = {
            "status": self._phases.words.get(layer.phase, "Preparing"),
            "id": shorten_id(layer.digest),
        }
        if layer.phase not in self._phases.barless:
            said["progressDetail"] = {"current": layer.done_bytes, "total": layer.total_bytes}
        self._say(said)

    def note(self, text: str) -> None:
        self._say({"status": text})

    def finish(self) -> None:
        """Nothing is kept back."""

    def tell(self, made: Mapping[str, Any]) -> None:
        self._say({"aux": made})

    def _say(self, said: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(said) + "\n")
        self._out.flush()


def progress_in(
    form: str, out: TextIO, phases: Phases = PULLING, *, quiet: bool
) -> LayersProgress | JsonProgress:
    """Raises InvalidError."""
    if not form:
        return LayersProgress(out, phases, quiet=quiet)
    if form != "json" or quiet:
        raise InvalidError("progress is bars and lines, or json without --quiet", subject=f"--format {form}")
    return JsonProgress(out, phases)
