# SPDX-License-Identifier: Apache-2.0
"""Rooms are entered by their doors: the package itself, ``base`` (its protocols) or an adapter's own package."""

import ast
from pathlib import Path

HYPERD = Path(__file__).parents[3] / "hyperd"
ROOMS = ("api", "build", "sandbox", "vm", "image", "network", "storage", "snapshot", "guest")
DOORS = (
    {f"hyperd.{room}" for room in ROOMS} | {f"hyperd.{room}.base" for room in ROOMS} | {"hyperd.vm.libvirt"}
)


def test_no_module_enters_another_room_but_by_its_door() -> None:
    inside = []
    for file in HYPERD.rglob("*.py"):
        own = file.relative_to(HYPERD).parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            parts = node.module.split(".")
            if parts[0] != "hyperd" or len(parts) < 2 or parts[1] == own or parts[1] not in ROOMS:
                continue
            if node.module not in DOORS:
                inside.append(f"{file.relative_to(HYPERD)}: {node.module}")
    assert not inside
