# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md has each key once, with its default."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from hyperd.config import Config

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
DEPENDS_ON_THE_HOST = {
    ("daemon", "socket"),
    ("vm", "kernel"),
    ("vm", "initramfs"),
    ("image", "mkfs_erofs"),
    ("storage", "virtiofsd"),
    ("build", "image"),
}


def test_the_page_has_the_keys_of_the_configuration_and_their_defaults() -> None:
    assert documented(PAGE.read_text()) == defaults()


def defaults() -> dict[tuple[str, str], str]:
    config = Config()
    return {
        (section.name, key.name): _written(
            section.name, key.name, getattr(getattr(config, section.name), key.name)
        )
        for section in dataclasses.fields(config)
        for key in dataclasses.fields(getattr(config, section.name))
    }


def documented(text: str) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    section = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"## \[(\w+)\]", line):
            section = heading[1]
        if row := re.match(r"\| `(\w+)` \| (.+?) \| ", line):
            assert (section, row[1]) not in found, row[0]
            found[section, row[1]] = "" if (section, row[1]) in DEPENDS_ON_THE_HOST else row[2].strip("`")
    return found


def _written(section: str, key: str, value: Any) -> str:
    """As TOML has it; nothing of what depends on the host."""
    if (section, key) in DEPENDS_ON_THE_HOST:
        return ""
    return json.dumps(
        list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    )
