# SPDX-License-Identifier: Apache-2.0
"""Volumes whose disks are servers', behind doors, as their tests have them."""

import pwd
from pathlib import Path

from hyperd.host.database import Database
from hyperd.model.vm import SandboxId
from hyperd.model.volume import VolumeName
from hyperd.storage import Doors, LocalVolumes

BOX, OTHER = SandboxId("a" * 64), SandboxId("b" * 64)
DB = VolumeName("db")
OWNERS = {BOX: (70001, 70000), OTHER: (70002, 70000)}


def opened(database: Database, tmp_path: Path) -> LocalVolumes:
    account = pwd.getpwnam("nobody")
    owner_of = lambda sandbox_id: OWNERS.get(sandbox_id, (0, 0))  # noqa: E731 - as the daemon's
    doors = Doors(tmp_path / "run", owner_of=owner_of, user=(account.pw_uid, account.pw_gid))
    return LocalVolumes(tmp_path / "volumes", database, owner_of=owner_of, doors=doors)
