# SPDX-License-Identifier: Apache-2.0
import getpass
import grp
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperd.errors import InvalidError, UnavailableError, WrongStateError
from hyperd.host.lock import FileLock
from hyperd.vm.libvirt import LibvirtSettings
from hyperd.vm.libvirt.settings import write_configuration
from tests.contract.vm.lab import short_directory

USER = getpass.getuser()
GROUP = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture
def short_path() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def settings_for(root: Path, user: str = USER, group: str = GROUP, device: str = "absent") -> LibvirtSettings:
    return LibvirtSettings(root=root, qemu_user=user, qemu_group=group, kvm_device=root.parent / device)


def test_the_configuration_names_qemus_user_and_keeps_libvirts_hands_off_files(short_path: Path) -> None:
    write_configuration(settings_for(short_path / "root"))
    lines = (short_path / "root/etc/qemu.conf").read_text().splitlines()
    assert f'user = "{USER}"' in lines
    assert "dynamic_ownership = 0" in lines
    assert "seccomp_sandbox = 1" in lines


@pytest.mark.skipif(os.getuid() != 0, reason="needs a user who may do less than the one who runs the tests")
@pytest.mark.parametrize(("mode", "probes_as"), [(0o600, "root"), (0o666, "nobody")])
def test_probes_get_the_rights_they_take_where_qemus_user_has_not_got_kvm(
    short_path: Path, mode: int, probes_as: str
) -> None:
    device = short_path / "kvm"
    device.touch()
    device.chmod(mode)
    write_configuration(settings_for(short_path / "root", "nobody", "nogroup", "kvm"))
    assert f'user = "{probes_as}"' in (short_path / "root/etc/qemu.conf").read_text()


def test_a_root_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="bytes"):
        write_configuration(settings_for(tmp_path / ("d" * 60)))


def test_an_unknown_user_is_named(short_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        write_configuration(settings_for(short_path / "root", user="nosuchuser"))
    assert "nosuchuser" in caught.value.subject


@pytest.mark.skipif(os.getuid() != 0, reason="needs a user who may do less than the one who runs the tests")
def test_a_directory_that_qemu_cannot_pass_is_named(short_path: Path) -> None:
    closed = short_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UnavailableError) as caught:
        write_configuration(settings_for(closed / "root", "nobody", "nogroup"))
    assert "cannot pass" in caught.value.brief


def test_the_uri_is_ones_own_or_the_embedded_one_quoted() -> None:
    assert LibvirtSettings(root=Path("/a b")).connection_uri == "qemu:///embed?root=/a%20b"
    system = LibvirtSettings(root=Path("/a"), uri="qemu:///system")
    assert system.connection_uri == "qemu:///system"
    assert not system.embedded


def test_a_root_that_is_taken_names_its_holder(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(WrongStateError, match=f"pid {os.getpid()}"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()
