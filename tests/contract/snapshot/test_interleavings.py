# SPDX-License-Identifier: Apache-2.0
"""Whatever is done in whatever order, and whenever hyperd ends: no half snapshot is shown and no whole one is lost."""

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hyperd.errors import ExistsError, WrongStateError
from hyperd.model.snapshot import SnapshotKind
from hyperd.snapshot import LocalSnapshots
from tests.mounts import names_in
from tests.saved import COMPATIBILITY, ME, write_sparse

kinds = st.sampled_from(SnapshotKind)


class Life(RuleBasedStateMachine):
    drafts = Bundle("drafts")
    snapshots = Bundle("snapshots")

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.root = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.whole = {}  # what there must be: id -> manifest
        self.open = set()  # drafts of this hyperd
        self.store = LocalSnapshots(self.root)
        self.restart()

    @rule()
    def restart(self):
        """A kill, as the disk sees it: nothing is discarded, nothing is closed."""
        self.store.close()
        self.store = LocalSnapshots(self.root)
        self.runner.run(self.store.open())
        self.open.clear()
        assert [name for name in names_in(self.root) if name.startswith(".")] == []

    @rule(target=drafts, data=st.binary(max_size=50))
    def begin(self, data):
        draft = self.runner.run(self.store.begin())
        write_sparse(self.runner.run(draft.create_file("ram", owner=ME)), 70_000, [(66_000, data)])
        self.open.add(draft.snapshot_id)
        return draft

    @rule(target=snapshots, draft=drafts, kind=kinds, name=st.sampled_from(["", "one", "two"]))
    def publish(self, draft, kind, name):
        if draft.snapshot_id not in self.open and draft.snapshot_id not in self.whole:
            return multiple()  # of a hyperd that was killed, or discarded
        taken = name and any((one.kind, one.name) == (kind, name) for one in self.whole.values())
        try:
            publishing = self.store.publish(draft, kind, COMPATIBILITY, name=name)
            snapshot = self.runner.run(publishing)
        except ExistsError:
            assert taken
            return multiple()
        except WrongStateError:
            assert draft.snapshot_id not in self.open
            return multiple()
        assert not taken
        self.open.discard(draft.snapshot_id)
        self.whole[draft.snapshot_id] = snapshot.manifest
        return snapshot

    @rule(target=snapshots, kind=kinds, name=st.sampled_from(["", "", "one"]))
    def make(self, kind, name):
        draft: Any = self.begin(b"data")
        made = self.publish(draft, kind, name)
        if draft.snapshot_id in self.open:
            self.discard(draft)
        return made

    @rule(draft=consumes(drafts))
    def discard(self, draft):
        self.runner.run(self.store.discard(draft))
        self.open.discard(draft.snapshot_id)

    @rule(snapshot=snapshots)
    def remove(self, snapshot):
        self.runner.run(self.store.remove(snapshot.manifest.snapshot_id))
        self.whole.pop(snapshot.manifest.snapshot_id, None)

    @rule(kind=kinds, count=st.integers(0, 3))
    def trim(self, kind, count):
        size = max((one.allocated_bytes for one in self.store.list(kind)), default=0)
        self.runner.run(self.store.trim(kind, size * count))
        left = {one.manifest.snapshot_id for one in self.store.list(kind)}
        assert len(left) <= count or size == 0
        for manifest in list(self.whole.values()):
            if manifest.kind is kind and manifest.snapshot_id not in left:
                del self.whole[manifest.snapshot_id]

    @invariant()
    def what_is_shown_is_whole_and_all_of_it(self):
        shown = [one for kind in SnapshotKind for one in self.store.list(kind)]
        assert {one.manifest.snapshot_id: one.manifest for one in shown} == self.whole
        for snapshot in shown:
            self.runner.run(self.store.require_intact(snapshot))
        hidden = [name for name in names_in(self.root) if name.startswith(".")]
        assert sorted(hidden) == sorted(f".draft-{snapshot_id}" for snapshot_id in self.open)
        assert not (self.root / "aside").exists()

    def teardown(self):
        self.store.close()
        self.stack.close()


Life.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=25)
TestLife = Life.TestCase
