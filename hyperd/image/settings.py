# SPDX-License-Identifier: Apache-2.0
"""What an image store is told when it is made."""

import os
from dataclasses import dataclass
from pathlib import Path

from hyperd.image.budget import NO_BUDGET, Marks
from hyperd.image.download import STALL_TIMEOUT_S

NOBODY = (65534, 65534)


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """``mkfs_user``: (uid, gid) of mkfs.erofs; None is the daemon's own, for a daemon that is not root."""

    root: Path
    mkfs_erofs: str = "mkfs.erofs"  # 1.8 or later
    skopeo: str = "skopeo"
    authfile: Path | None = None
    mkfs_user: tuple[int, int] | None = NOBODY if os.geteuid() == 0 else None
    parallel_layers: int = 2
    max_layer_bytes: int = 64 << 30
    reserve_bytes: int = 256 << 20
    stall_timeout_s: float = STALL_TIMEOUT_S
    budget: Marks = NO_BUDGET
