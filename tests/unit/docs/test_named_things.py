# SPDX-License-Identifier: Apache-2.0
"""What the pages name is there: source files; and docs/cli.md names every command."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from hyperctl import tables
from hyperctl.commands.daemon import app as daemon

ROOT = Path(__file__).resolve().parents[3]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
SOURCES = (
    "agent",
    "bench",
    "cli",
    "demo",
    "guestbuilder",
    "guestkernel",
    "hyperd",
    "proto",
    "setup",
    "tests",
)
NAMED = re.compile(r"`([\w./-]+\.(?:py|rs|proto))`")
GROUPS: dict[str, Iterable[str]] = {
    "snapshot": tables.SNAPSHOT_GROUP,
    "template": tables.TEMPLATE_GROUP,
    "volume": tables.VOLUME_GROUP,
    "network": tables.NETWORK_GROUP,
    "port": tables.PORT_GROUP,
    "egress": tables.EGRESS_GROUP,
    "sg": tables.SECURITY_GROUP_GROUP,
    "fip": tables.FLOATING_GROUP,
    "manifest": tables.MANIFEST_GROUP,
    "system": tables.SYSTEM_GROUP,
    "daemon": [command.name or "" for command in daemon.registered_commands],
    # Longer names of what stands in the table of the root, but for these.
    "container": ["prune"],
    "image": ["prune"],
}


@pytest.fixture(scope="module")
def sources() -> set[str]:
    return {str(path.relative_to(ROOT)) for place in SOURCES for path in (ROOT / place).rglob("*.*")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_file_that_is_named_exists(page: Path, sources: set[str]):
    named = NAMED.findall(page.read_text())
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in sources)] == []


def test_every_command_is_in_its_page():
    text = (ROOT / "docs" / "cli.md").read_text()
    singles = [name for name in tables.ROOT_TABLE if name not in GROUPS and not name.startswith("__")]
    grouped = [f"{group} {name}" for group, table in GROUPS.items() for name in table]
    assert [
        command
        for command in singles + grouped
        if f"`{command}`" not in text and f"`hyper {command}`" not in text
    ] == []
