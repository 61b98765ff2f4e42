# SPDX-License-Identifier: Apache-2.0
"""Defaults, file, environment, flags: later ones win, unknown ones are errors that say where."""

import dataclasses
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd import config as configuration
from hyperd.__main__ import main
from hyperd.config import Config, DaemonConfig, NetworkConfig, VmConfig, load, render
from hyperd.errors import InvalidError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(configuration, "DEFAULT_PATH", tmp_path / "absent.toml")
    return tmp_path / "hyperd.toml"


def test_without_anything_the_defaults_hold(file: Path) -> None:
    assert load(None, {}, {}) == Config()
    assert Config().socket == Path("/run/hyper/hyperd.sock")


def test_file_then_environment_then_flags(file: Path) -> None:
    file.write_text('[vm]\naccel = "tcg"\ndefault_vcpus = 2\nmax_sandboxes = 3\n')
    environment = {"HYPERD_VM_DEFAULT_VCPUS": "4", "HYPERD_VM_MAX_SANDBOXES": "5", "PATH": "/bin"}
    vm = load(file, environment, {"vm.max_sandboxes": "6"}).vm
    assert (vm.accel, vm.default_vcpus, vm.max_sandboxes) == ("tcg", 4, 6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[vm]\nacel = 'kvm'\n", ["unknown key 'acel' in [vm]", "accel"]),
        ("[vn]\n", []),
        ("[vn]\nx = 1\n", ["unknown section [vn]"]),
        ("accel = 'kvm'\n", ["unknown key 'accel'", "[section]"]),
        ("[vm]\naccel = 'xen'\n", ["[vm] accel = 'xen'", "one of auto, kvm, tcg"]),
        ("[vm]\ndefault_vcpus = '2x'\n", ["a whole number"]),
        ("[vm]\ndefault_vcpus = 1.5\n", ["a whole number"]),
        ("[vm]\ndefault_vcpus = true\n", ["a whole number"]),
        ("[vm]\ndefault_vcpus = 0\n", ["cannot be 0"]),
        ("[vm]\ndefault_vcpus = -1\n", ["does not fit"]),
        ("[vm]\nmemory_overcommit = nan\n", ["a number"]),
        ("[vm]\nmemory_overcommit = inf\n", ["a number"]),
        ("[vm]\nkernel = 'vmlinux'\n", ["an absolute path"]),
        ("[vm]\nkernel = []\n", ["an absolute path"]),
        ("[daemon]\nsocket_group = 1\n", ["a text"]),
        ('[daemon]\nstate_dir = "/a\\u0000b"\n', ["an absolute path"]),
        ("[template]\nenabled = 1\n", ["[template] enabled = 1", "true or false"]),
        ("[template]\nenabled = 'yes'\n", ["true or false"]),
        ("[template]\nbudget_mib = true\n", ["a whole number"]),
        ("[vm\n", ["is not TOML"]),
    ],
)
def test_what_is_wrong_is_named_with_its_file(file: Path, text: str, said: list[str]) -> None:
    file.write_text(text)
    if not said:
        assert load(file, {}, {}) == Config()
        return
    with pytest.raises(InvalidError) as caught:
        load(file, {}, {})
    for part in (str(file), *said):
        assert part in str(caught.value)


def test_what_is_wrong_in_environment_or_flags_is_named_too(file: Path) -> None:
    with pytest.raises(InvalidError, match="HYPERD_VM_ACEL"):
        load(None, {"HYPERD_VM_ACEL": "kvm"}, {})
    with pytest.raises(InvalidError, match=r"--set vm\.acel"):
        load(None, {}, {"vm.acel": "kvm"})


def test_a_switch_is_true_or_false_wherever_it_is_given(file: Path) -> None:
    file.write_text("[template]\nenabled = false\n")
    assert load(file, {}, {}).template.enabled is False
    assert load(file, {"HYPERD_TEMPLATE_ENABLED": "true"}, {}).template.enabled is True
    assert load(file, {}, {"template.share_memory": "false"}).template.share_memory is False


def test_a_list_of_paths_is_a_list_in_the_file_and_has_colons_elsewhere(file: Path) -> None:
    file.write_text('[storage]\nbind_allow = ["/srv", "/home"]\n')
    config = load(file, {}, {})
    assert config.storage.bind_allow == (Path("/srv"), Path("/home"))
    file.write_text(render(config))
    assert load(file, {}, {}) == config
    assert load(file, {"HYPERD_STORAGE_BIND_ALLOW": "/a:/b"}, {}).storage.bind_allow == (
        Path("/a"),
        Path("/b"),
    )
    assert load(file, {}, {"storage.bind_allow": ""}).storage.bind_allow == ()
    for wrong in ('["srv"]', "[1]", "1", '"srv"', "true"):
        file.write_text(f"[storage]\nbind_allow = {wrong}\n")
        with pytest.raises(InvalidError, match="bind_allow"):
            load(file, {}, {})


def test_a_file_that_was_named_has_to_be_there(file: Path) -> None:
    with pytest.raises(InvalidError, match="cannot be read"):
        load(file, {}, {})


def test_the_network_s_mtu_may_be_0_for_the_host_s_own(file: Path) -> None:
    assert load(None, {"HYPERD_NETWORK_MTU": "0"}, {}).network.mtu == 0


def test_a_list_is_one_wherever_it_is_given(file: Path) -> None:
    file.write_text('[network]\nfloating = ["203.0.113.0/28", "198.51.100.7"]\n')
    assert load(file, {}, {}).network.floating == ("203.0.113.0/28", "198.51.100.7")
    given = load(file, {"HYPERD_NETWORK_FLOATING": "203.0.113.0/28, 198.51.100.7"}, {})
    assert given == load(file, {}, {})
    assert load(None, {}, {"network.floating": ""}).network.floating == ()
    for wrong in ("[1]", "7", '{ a = "b" }'):
        file.write_text(f"[network]\nfloating = {wrong}\n")
        with pytest.raises(InvalidError, match="takes a list of texts"):
            load(file, {}, {})


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(
    texts,
    st.floats(0.1, 1e300),
    st.integers(1, 1 << 40),
    texts.filter(lambda text: "\0" not in text).map(lambda text: Path("/") / text.lstrip("/")),
    st.lists(texts),
)
def test_what_is_rendered_loads_to_the_same(
    text: str, number: float, count: int, path: Path, several: list[str]
) -> None:
    config = Config(
        daemon=DaemonConfig(state_dir=path, socket=path, socket_group=text),
        vm=VmConfig(memory_overcommit=number, max_sandboxes=count, cmdline=text),
        network=NetworkConfig(floating=tuple(several)),
    )
    with tempfile.NamedTemporaryFile("w", newline="") as opened:
        opened.write(render(config))
        opened.flush()
        assert load(Path(opened.name), {}, {}) == config


def test_every_key_is_rendered(file: Path) -> None:
    shown = render(Config())
    for section in dataclasses.fields(Config):
        for key in dataclasses.fields(getattr(Config(), section.name)):
            assert f"{key.name} = " in shown or key.name == "socket"


def test_the_command_prints_the_configuration_in_effect(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--set", "vm.accel=tcg", "--print-config"]) == 0
    assert 'accel = "tcg"' in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--set", "vm"], ["--set", "vm.x=1"], ["--config", "/nonexistent"]])
def test_a_wrong_command_line_is_one_line_and_status_1(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main([*arguments, "--print-config"]) == 1
    assert capsys.readouterr().err.startswith("hyperd: ")


def test_no_spares_may_be_wanted() -> None:
    assert load(None, {}, {}).template.spares == 1
    assert load(None, {"HYPERD_TEMPLATE_SPARES": "0"}, {}).template.spares == 0
