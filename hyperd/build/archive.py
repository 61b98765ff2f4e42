# SPDX-License-Identifier: Apache-2.0
"""Which image the builder's archive holds, by a look at its first member and at that one's manifest.

What is run as the builder is that very image, by its id: anybody may give another one its name.
"""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperd.errors import InvalidError, UnavailableError
from hyperd.image import parse_digest
from hyperd.model.image import ImageId

_NAME = "io.containerd.image.name"
_HINT = "`make setup` makes it; [build] image names another one"


@dataclass(frozen=True, slots=True)
class BuilderImage:
    name: str
    image_id: ImageId


def image_in(archive: Path) -> BuilderImage:
    """Blocks. Raises UnavailableError when there is none."""
    try:
        with tarfile.open(archive, "r:") as tar:
            described = _index_of(tar)["manifests"][0]
            digest = parse_digest(described["digest"], "manifest")
            manifest = _content(tar, tar.getmember(f"blobs/sha256/{digest.removeprefix('sha256:')}"))
            config = parse_digest(manifest["config"]["digest"], "config")
            return BuilderImage(str(described["annotations"][_NAME]), ImageId(config))
    except FileNotFoundError as error:
        raise UnavailableError("there is no image to build in", subject=str(archive), hint=_HINT) from error
    except (OSError, tarfile.TarError, ValueError, LookupError, TypeError, InvalidError) as error:
        raise UnavailableError(
            "is no builder's image", subject=str(archive), evidence=str(error), hint=_HINT
        ) from error


def _index_of(tar: tarfile.TarFile) -> Any:
    first = tar.next()
    if first is None or first.name != "index.json":
        raise ValueError("it does not begin with an index.json")
    return _content(tar, first)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    content = tar.extractfile(member)
    if content is None:
        raise ValueError(f"{member.name} is no file")
    return json.load(content)
