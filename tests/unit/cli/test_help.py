# SPDX-License-Identifier: Apache-2.0
"""Help and completion."""

import tomllib

import pytest
from typer.testing import CliRunner

import hyperctl
from hyper.v1 import container_pb2 as pb
from hyperctl import main, tables
from tests.unit.cli.goldens import GOLDEN, golden


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("run",),
        ("exec",),
        ("ps",),
        ("daemon",),
        ("container",),
        ("image",),
        ("system",),
        ("cp",),
        ("commit",),
        ("snapshot",),
        ("template",),
        ("fork",),
        ("volume",),
        ("build",),
    ],
)
def test_help(args, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = CliRunner().invoke(main.app, [*args, "--help"], prog_name="hyper", env={"HYPER_HOST": ""})
    assert result.exit_code == 0
    golden("-".join(("help", *args)) + ".txt", result.output)


def test_every_command_has_help_and_a_summary(hyper):
    for table, prefix in (
        (tables.ROOT_TABLE, ()),
        (tables.CONTAINER_GROUP, ("container",)),
        (tables.IMAGE_GROUP, ("image",)),
        (tables.SNAPSHOT_GROUP, ("snapshot",)),
        (tables.TEMPLATE_GROUP, ("template",)),
        (tables.VOLUME_GROUP, ("volume",)),
        (tables.MANIFEST_GROUP, ("manifest",)),
        (tables.SYSTEM_GROUP, ("system",)),
        (tables.NETWORK_GROUP, ("network",)),
        (tables.PORT_GROUP, ("port",)),
        (tables.EGRESS_GROUP, ("egress",)),
        (tables.SECURITY_GROUP_GROUP, ("sg",)),
        (tables.FLOATING_GROUP, ("fip",)),
    ):
        for name, (_, _, summary) in table.items():
            if name.startswith("__"):
                continue
            result = hyper(*prefix, name, "--help")
            assert (result.status, bool(summary)) == (0, True), name
            assert result.out.startswith(f"Usage: hyper {' '.join((*prefix, name))} "), result.out


@pytest.mark.parametrize(
    "group", ["container", "image", "snapshot", "template", "volume", "network", "sg", "fip"]
)
def test_an_alias_is_understood_and_not_listed(hyper, group):
    assert hyper(group, "list", "--help").status == 0
    assert "  list " not in hyper(group, "--help").out


def test_hyper_alone_shows_its_help(capfd):
    assert main.run([]) == 2
    assert "Commands:" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["st"], ["start", "stop", "stats"]),
        (["run", "--det"], ["--detach", "--detach-keys"]),
        (["run", "al"], ["alpine:latest"]),
        (["run", "-it", "--name", "x", "al"], ["alpine:latest"]),
        (["run", "--name", "al"], []),
        (["run", "alpine", ""], []),
        (["stop", "w"], ["web"]),
        (["stop", "web", ""], ["web"]),
        (["rm", "o"], ["old"]),
        (["stop", "o"], []),
        (["exec", "-it", ""], ["web"]),
        (["exec", "web", ""], []),
        (["container", "st"], ["start", "stop", "stats"]),
        (["container", "rm", "o"], ["old"]),
        (["image", "rm", ""], ["alpine:latest"]),
        (["daemon", ""], ["start", "stop", "status"]),
        (["inspect", ""], ["old", "web", "alpine:latest"]),
        (["pause", ""], ["web"]),
        (["unpause", ""], []),
        (["run", "--from-snapshot", "w"], ["warm"]),
        (["snapshot", "rm", ""], ["warm"]),
        (["rollback", "w"], ["web"]),
        (["rollback", "web", ""], ["warm"]),
        (["template", "rm", ""], ["743714ee7b2a"]),
        (["nosuch", ""], []),
    ],
)
def test_completion(daemon, web, hyper, words, expected):
    daemon.add_container(pb.ContainerSpec(name="old", image="alpine"))
    daemon.add_snapshot(web, "warm")
    daemon.add_template(1, 256, "nic")
    assert hyper("__complete", *words).out.split() == expected


def test_completion_without_a_daemon_is_silent(hyper):
    result = hyper("__complete", "stop", "")
    assert (result.status, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(hyper, shell):
    assert "hyper __complete" in hyper("completion", shell).out


def test_the_version_is_the_packages():
    project = tomllib.loads((GOLDEN.parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == hyperctl.VERSION
