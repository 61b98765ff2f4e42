# SPDX-License-Identifier: Apache-2.0
"""The socket: whose it is, and who may have it."""

import grp
import os
import socket
from pathlib import Path

import pytest

from hyperd.api import serving
from hyperd.errors import InvalidError, UnavailableError, WrongStateError
from tests.fakes.world import World
from tests.unit.api.conftest import Api, servicers


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


async def test_the_socket_is_for_root_and_its_group(api: Api) -> None:
    assert mode(api.path) == 0o660


async def test_the_socket_is_handed_to_the_group(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid())
    world = World(tmp_path)
    async with world.daemon() as fleet, serving(tmp_path / "s", group.gr_name, servicers(world, fleet)):
        assert owner(tmp_path / "s") == group.gr_gid
    assert not present(tmp_path / "s")


def owner(path: Path) -> int:
    return path.stat().st_gid


def present(path: Path) -> bool:
    return path.exists()


async def test_a_second_daemon_is_refused(api: Api) -> None:
    with pytest.raises(WrongStateError, match="another daemon"):
        async with serving(api.path, "none", servicers(api.world, api.fleet)):
            pass
    assert present(api.path)


async def test_a_socket_left_by_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    world = World(tmp_path)
    async with world.daemon() as fleet, serving(tmp_path / "s", "none", servicers(world, fleet)):
        assert mode(tmp_path / "s") == 0o660


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    world = World(tmp_path)
    async with world.daemon() as fleet:
        with pytest.raises(InvalidError, match="in the way"):
            async with serving(tmp_path / "s", "none", servicers(world, fleet)):
                pass
    assert (tmp_path / "s").read_text() == "precious"


@pytest.mark.parametrize("name", ["nowhere/s", "s" * 200])
async def test_a_socket_that_cannot_be_made_is_said(tmp_path: Path, name: str) -> None:
    world = World(tmp_path)
    async with world.daemon() as fleet:
        with pytest.raises(UnavailableError, match="cannot be listened on"):
            async with serving(tmp_path / name, "none", servicers(world, fleet)):
                pass
