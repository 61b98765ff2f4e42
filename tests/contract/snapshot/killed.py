# SPDX-License-Identifier: Apache-2.0
"""As a program: kills a hyperd before each thing that it does to the file system, and looks at what the next one finds.

Prints the number of kills; fails when one of them lost a whole snapshot or left a half one. ``python killed.py ROOT``.
"""

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

from hyperd.model.snapshot import SnapshotKind
from hyperd.snapshot import LocalSnapshots
from tests.mounts import names_in
from tests.saved import COMPATIBILITY, ME, in_pieces, write_sparse


async def live(root: Path, report: int) -> None:
    """A short life with all that changes the disk. Says on ``report`` what is whole and what may be gone."""

    def say(word: str, snapshot_id: str) -> None:
        os.write(report, f"{word} {snapshot_id}\n".encode())

    store = LocalSnapshots(root, reserve_bytes=0)
    await store.open()
    made = []
    for kind in SnapshotKind:
        draft = await store.begin()
        ram = await draft.create_file("ram", size_bytes=200_000, owner=ME)
        write_sparse(ram, 200_000, [(70_000, b"memory")])
        await draft.add_copy("disk", ram)
        made.append(await store.publish(draft, kind, COMPATIBILITY, name="one"))
        say("whole", draft.snapshot_id)
    draft = await store.begin()
    await draft.create_file("ram", owner=ME)
    await store.discard(draft)
    sandbox = made[1]
    stream = b"".join([chunk async for chunk in store.export(sandbox)])
    await store.touch(sandbox)
    say("going", sandbox.manifest.snapshot_id)
    await store.remove(sandbox.manifest.snapshot_id)
    await store.import_(in_pieces(stream, 1000), name="two")
    say("whole", sandbox.manifest.snapshot_id)
    say("going", made[0].manifest.snapshot_id)
    await store.trim(SnapshotKind.TEMPLATE, 0)
    store.close()


def live_until(root: Path, report: int, steps: int) -> None:
    left = steps

    def count(event: str, _: object) -> None:
        nonlocal left
        if event == "open" or event.startswith("os."):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    asyncio.run(live(root, report))


async def look(root: Path, said: list[tuple[str, str]]) -> None:
    store = LocalSnapshots(root, reserve_bytes=0)
    await store.open()
    expected = {snapshot_id: word for word, snapshot_id in said}  # the last word on each
    shown = [snapshot for kind in SnapshotKind for snapshot in store.list(kind)]
    for snapshot in shown:
        await store.require_intact(snapshot)
    missing = {one for one, word in expected.items() if word == "whole"} - {
        one.manifest.snapshot_id for one in shown
    }
    assert not missing, missing
    assert names_in(root) == sorted(kind.value for kind in SnapshotKind), names_in(root)
    assert sum(len(names_in(root / kind.value)) for kind in SnapshotKind) == len(shown)
    store.close()


def killed_at(root: Path, steps: int) -> bool:
    """Whether it came so far."""
    hear, report = os.pipe()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            live_until(root, report, steps)
            status = 0
        finally:
            os._exit(status)
    os.close(report)
    with os.fdopen(hear) as heard:
        words = [line.split() for line in heard]
    said = [(word, snapshot_id) for word, snapshot_id in words]
    _, status = os.waitpid(pid, 0)
    asyncio.run(look(root, said))
    shutil.rmtree(root)
    if not os.WIFSIGNALED(status):
        assert os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def main() -> None:
    root = Path(sys.argv[1])
    kills = 0
    while killed_at(root, kills + 1):
        kills += 1
    print(kills)


if __name__ == "__main__":
    main()
