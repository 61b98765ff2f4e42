# SPDX-License-Identifier: Apache-2.0
"""Which image the builder's archive holds, by a look at its first member."""

import json
import tarfile
from pathlib import Path
from typing import Any

from hyperd.errors import UnavailableError

_NAME = "io.containerd.image.name"
_HINT = "`make setup` makes it; [build] image names another one"


def name_in(archive: Path) -> str:
    """Blocks. Raises UnavailableError when there is none."""
    try:
        return str(_index_of(archive)["manifests"][0]["annotations"][_NAME])
    except FileNotFoundError as error:
        raise UnavailableError("there is no image to build in", subject=str(archive), hint=_HINT) from error
    except (OSError, tarfile.TarError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UnavailableError(
            "is no builder's image", subject=str(archive), evidence=str(error), hint=_HINT
        ) from error


def _index_of(archive: Path) -> Any:
    with tarfile.open(archive, "r:") as tar:
        first = tar.next()
        content = tar.extractfile(first) if first is not None and first.name == "index.json" else None
        if content is None:
            raise ValueError("it does not begin with an index.json")
        return json.load(content)
