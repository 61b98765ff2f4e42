# SPDX-License-Identifier: Apache-2.0
"""How much a directory of a guest's has, counted by descriptors: no path is too long, and no link is followed."""

import contextlib
import os
from pathlib import Path

MOST_COUNTED = 20_000  # files: a size is shown, and nobody is to wait for that
MOST_DEEP = 64  # levels, with a descriptor each
_WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Level:
    """A directory that is being walked."""

    def __init__(self, name: str | Path, parent: int | None) -> None:
        self.descriptor = os.open(name, _WALK, dir_fd=parent)
        try:
            self._entries = os.scandir(self.descriptor)
        except BaseException:
            os.close(self.descriptor)
            raise

    def next(self) -> os.DirEntry[str] | None:
        """None at the end, and where the directory cannot be read on."""
        with contextlib.suppress(OSError):
            return next(self._entries, None)
        return None

    def close(self) -> None:
        self._entries.close()
        os.close(self.descriptor)


def allocated_below(path: Path) -> int:
    """Bytes, as far as they are counted. What is gone, or another thing by now, or beyond reach counts for nothing."""
    blocks, left, levels = 0, MOST_COUNTED, list[_Level]()
    with contextlib.suppress(OSError):
        levels.append(_Level(path, None))
    try:
        while levels and left:
            entry = levels[-1].next()
            if entry is None:
                levels.pop().close()
                continue
            left -= 1
            with contextlib.suppress(OSError):
                blocks += entry.stat(follow_symlinks=False).st_blocks
                if len(levels) < MOST_DEEP and entry.is_dir(follow_symlinks=False):
                    levels.append(_Level(entry.name, levels[-1].descriptor))
    finally:
        for level in levels:
            level.close()
    return blocks * 512
