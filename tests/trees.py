# SPDX-License-Identifier: Apache-2.0
"""What a guest would see of layers: the kernel's own EROFS and overlayfs in a private mount namespace. Needs root."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperd.host import process

_LOOK = r"""
import hashlib, json, os, stat, subprocess, sys
work, *layers = sys.argv[1:]
mounts = []
for number, layer in enumerate(layers):
    target = f"{work}/{number}"
    os.mkdir(target)
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", layer, target], check=True)
    mounts.append(target)
root = mounts[0]
if len(mounts) > 1:
    root = f"{work}/root"
    os.mkdir(root)
    lower = ":".join(reversed(mounts))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", root], check=True)
tree = {}
for directory, names, files in os.walk(root):
    for name in names + files:
        path = os.path.join(directory, name)
        seen = os.lstat(path)
        item = {"kind": stat.filemode(seen.st_mode)[0], "mode": stat.S_IMODE(seen.st_mode), "uid": seen.st_uid}
        item |= {"gid": seen.st_gid, "links": seen.st_nlink, "mtime": seen.st_mtime_ns // 10**9}
        item["xattrs"] = {key: os.getxattr(path, key, follow_symlinks=False).decode() for key in
                          os.listxattr(path, follow_symlinks=False)}
        if item["kind"] == "-":
            item["data"] = hashlib.sha256(open(path, "rb").read()).hexdigest()
        if item["kind"] == "l":
            item["target"] = os.readlink(path)
        tree[os.path.relpath(path, root)] = item
json.dump(tree, sys.stdout)
"""


async def tree_of(layers: Sequence[Path], work: Path) -> dict[str, dict[str, Any]]:
    """Layers lowest first; path -> kind (as in `ls -l`), mode, uid, gid, links, mtime, xattrs, data or target."""
    work.mkdir(exist_ok=True)  # a test
    argv = ["unshare", "--mount", "--propagation=private", sys.executable, "-c", _LOOK, str(work)]
    finished = await process.run([*argv, *map(str, layers)], timeout_s=60)
    assert finished.returncode == 0, finished.stderr_tail
    tree: dict[str, dict[str, Any]] = json.loads(finished.stdout)
    return tree
