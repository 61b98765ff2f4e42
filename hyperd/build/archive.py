# SPDX-License-Identifier: Apache-2.0
"""Which image the builder's archive holds, by a look at its first member."""

import json
import tarfile
from pathlib import Path

from hyperd.errors import UnavailableError

_NAME = "io.containerd.image.name"
_HINT = "`make setup` makes it; [build] image names another one"


def name_in(archive: Path) -> str:
    """Blocks. Raises UnavailableError when there is none."""
    try:
        with tarfile.open(archive, "r:") as tar:
            first = tar.next()
            content = tar.extractfile(first) if first is not None and first.name == "index.json" else None
            if content is None:
                raise ValueError("it does not begin with an index.json")
            return str(json.load(content)["manifests"][0]["annotations"][_NAME])
    except (OSError, tarfile.TarError, ValueError, KeyError, IndexError, TypeError) as error:
        brief = (
            "there is no image to build in"
            if isinstance(error, FileNotFoundError)
            else "is no builder's image"
        )
        raise UnavailableError(brief, subject=str(archive), evidence=str(error), hint=_HINT) from error
