# SPDX-License-Identifier: Apache-2.0
"""What `hyper doctor` says: the judgements, and that a bare host yields findings and no exception."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from hyperd import doctor
from hyperd.config import Config, DaemonConfig, ImageConfig, StorageConfig, VmConfig
from hyperd.model.host import CheckLevel, HostCheck
from hyperd.model.vm import Accelerator
from hyperd.sandbox import Choice

QEMU, KVM_GROUP = 64055, 106
DOCKER = """\
table ip filter {
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter packets 0 bytes 0 jump DOCKER-USER
    }
}
table ip filter {
    chain DOCKER-USER {
        %s
    }
}
"""


def device(mode: int, *, uid: int = 0, gid: int = 0) -> os.stat_result:
    return os.stat_result((0o020000 | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


def config(**vm: object) -> Config:
    return dataclasses.replace(Config(), vm=VmConfig(**vm))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "usable"),
    [
        (device(0o600), False),
        (device(0o660), False),
        (device(0o660, gid=KVM_GROUP), True),
        (device(0o640, gid=KVM_GROUP), False),
        (device(0o606, gid=KVM_GROUP), False),  # the group's bits count, not those of others
        (device(0o666), True),
        (device(0o600, uid=QEMU), True),
    ],
)
def test_kvm_is_of_use_only_when_qemus_user_may_open_it(status: os.stat_result, usable: bool):
    check = doctor.judge_kvm(config(), status, QEMU, frozenset({KVM_GROUP}))
    assert (check.level is CheckLevel.OK) == usable
    assert usable or check.advice.startswith("chgrp kvm /dev/kvm; chmod 660 /dev/kvm")


@pytest.mark.parametrize(
    ("accel", "level"),
    [("auto", CheckLevel.WARNING), ("kvm", CheckLevel.FAILED), ("tcg", CheckLevel.OK)],
)
def test_how_bad_it_is_without_kvm_is_the_configurations_word(accel: str, level: CheckLevel):
    for status in (None, device(0o600)):
        assert doctor.judge_kvm(config(accel=accel), status, QEMU, frozenset()).level is level


def test_forwarding_is_a_fault_only_when_somebody_turned_it_off_again():
    assert doctor.judge_forwarding("1\n", bridge_exists=True).level is CheckLevel.OK
    assert doctor.judge_forwarding("0\n", bridge_exists=False).level is CheckLevel.OK
    off = doctor.judge_forwarding("0\n", bridge_exists=True)
    assert off.level is CheckLevel.WARNING
    assert "net.ipv4.ip_forward=1" in off.advice


def chains(*found: tuple[str, str, str, str, str]) -> bytes:
    keys = ("family", "table", "name", "hook", "policy")
    listed = [{"chain": dict(zip(keys, chain, strict=True))} for chain in found]
    return json.dumps(
        {"nftables": [{"metainfo": {}}, *listed, {"chain": {"family": "ip", "table": "nat", "name": "X"}}]}
    ).encode()


def test_chains_that_drop_what_is_forwarded_are_found():
    listing = chains(
        ("ip", "filter", "FORWARD", "forward", "drop"),
        ("ip", "filter", "INPUT", "input", "drop"),
        ("inet", "hyper_hyper0", "forward", "forward", "accept"),
        ("ip6", "filter", "FORWARD", "forward", "drop"),
    )
    assert doctor.dropping_chains(listing) == [("ip", "filter", "FORWARD")]
    assert doctor.dropping_chains(b"") == []
    assert doctor.dropping_chains(b"Error: syntax error") == []


def test_dockers_firewall_is_a_warning_with_the_way_out():
    forward = ("ip", "filter", "FORWARD")
    warned = doctor.judge_firewall([forward], DOCKER % "return", "hyper0")
    assert warned.level is CheckLevel.WARNING
    assert "ip filter FORWARD" in warned.finding
    assert "iptables -I DOCKER-USER -i hyper0 -j ACCEPT" in warned.advice
    assert "FORWARD -i hyper0" in doctor.judge_firewall([forward], "", "hyper0").advice
    repaired = doctor.judge_firewall([forward], DOCKER % 'iifname "hyper0" counter accept', "hyper0")
    assert repaired.level is CheckLevel.OK
    other = doctor.judge_firewall([forward], DOCKER % 'iifname "hyper01" counter accept', "hyper0")
    assert other.level is CheckLevel.WARNING
    assert doctor.judge_firewall([], "", "hyper0").level is CheckLevel.OK


async def test_a_host_without_anything_has_findings_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    nowhere = tmp_path / "nowhere"
    bare = Config(
        daemon=DaemonConfig(
            state_dir=nowhere / "state", run_dir=nowhere / "run", socket_group="no-such-group"
        ),
        vm=VmConfig(qemu_user="no-such-user", kernel=nowhere / "vmlinux", initramfs=nowhere / "initramfs"),
        image=ImageConfig(skopeo="no-such-skopeo", mkfs_erofs=nowhere / "mkfs.erofs"),
        storage=StorageConfig(virtiofsd=nowhere / "virtiofsd"),
    )
    checks = {check.name: check for check in await doctor.check_host(bare, None)}
    failed = {name for name, check in checks.items() if check.level is CheckLevel.FAILED}
    assert failed >= {
        "qemu",
        "qemu user",
        "kvm device",
        "guest kernel",
        "agent",
        "mkfs.erofs",
        "skopeo",
        "mkfs.ext4",
        "nftables",
    }
    assert checks["virtiofsd"].level is CheckLevel.WARNING
    assert "make setup" in checks["virtiofsd"].advice
    assert checks["mkfs.xfs"].level is CheckLevel.WARNING
    assert "xfsprogs" in checks["mkfs.xfs"].advice
    assert "no-such-group" in checks["socket"].finding
    assert "groupadd --system no-such-group" in checks["socket"].advice
    assert checks["firewall"].level is CheckLevel.WARNING
    assert all(check.advice for check in checks.values() if check.level is not CheckLevel.OK)
    assert doctor.worst(list(checks.values())) is CheckLevel.FAILED


@pytest.mark.parametrize(
    ("says", "level"),
    [("skopeo version 1.9.3", CheckLevel.OK), ("1.8", CheckLevel.FAILED), ("what?", CheckLevel.FAILED)],
)
async def test_a_version_is_held_against_the_least_one(tmp_path: Path, says: str, level: CheckLevel):
    program = tmp_path / "skopeo"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    asked = dataclasses.replace(Config(), image=ImageConfig(skopeo=str(program)))
    checks = {check.name: check for check in await doctor.check_host(asked, None)}
    assert checks["skopeo"].level is level


async def test_emulation_is_a_warning_unless_it_was_asked_for():
    choice = Choice(Accelerator.TCG, "no KVM here")
    for accel, level in (("auto", CheckLevel.WARNING), ("tcg", CheckLevel.OK)):
        first = (await doctor.check_host(config(accel=accel), choice))[0]
        assert (first.name, first.level) == ("accelerator", level)


async def test_before_the_probe_nobody_is_told_to_start_a_container():
    """hyperd probes when it starts."""
    first = (await doctor.check_host(config(), None))[0]
    assert (first.name, first.level) == ("accelerator", CheckLevel.WARNING)
    assert first.advice == "hyperd probes it when it starts"


async def test_a_directory_that_users_cannot_pass_hides_the_socket(tmp_path: Path):
    hidden = tmp_path / "run"
    hidden.mkdir(mode=0o700)
    asked = dataclasses.replace(Config(), daemon=DaemonConfig(run_dir=hidden))
    checks = {check.name: check for check in await doctor.check_host(asked, None)}
    assert checks["socket"] == HostCheck(
        "socket", CheckLevel.WARNING, f"only root passes {hidden}", f"chmod o+x {hidden}"
    )


def test_the_worst_counts():
    def of(*levels: CheckLevel) -> CheckLevel:
        return doctor.worst([HostCheck("x", level, "") for level in levels])

    assert of(CheckLevel.OK) is CheckLevel.OK
    assert of(CheckLevel.WARNING, CheckLevel.OK) is CheckLevel.WARNING
    assert of(CheckLevel.WARNING, CheckLevel.FAILED) is CheckLevel.FAILED
