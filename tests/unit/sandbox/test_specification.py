# SPDX-License-Identifier: Apache-2.0
"""What can be asked for, and what is refused before anything is made."""

from dataclasses import replace

import pytest

from hyperd.errors import InvalidError, UnsupportedError
from hyperd.model.container import ContainerSpec, Ulimit
from hyperd.model.image import ImageConfig
from hyperd.sandbox import specification

IMAGE = ImageConfig()


@pytest.mark.parametrize("spec", [ContainerSpec("i"), ContainerSpec("i", entrypoint=("",))])
def test_nothing_to_run_is_refused(spec: ContainerSpec) -> None:
    with pytest.raises(InvalidError, match="no command"):
        specification.command_of(spec, ImageConfig())


def test_an_empty_word_is_a_command() -> None:
    assert specification.command_of(ContainerSpec("i", args=("",)), ImageConfig(cmd=("sh",))) == ("",)


@pytest.mark.parametrize(
    "fields",
    [
        {"env": ("=x",)},
        {"env": ("",)},
        {"env": ("A=\0",)},
        {"args": ("a\0",)},
        {"user": "\0"},
        {"cap_add": ("NOPE",)},
        {"cap_drop": ("CAP_",)},
        {"stop_signal": "NOPE"},
        {"ulimits": (Ulimit("nope", 1, 1),)},
        {"ulimits": (Ulimit("nofile", 2, 1),)},
        {"ulimits": (Ulimit("nofile", -1, 1),)},
        {"ulimits": (Ulimit("nofile", -2, -2),)},
        {"sysctls": {"../x": "1"}},
        {"sysctls": {"net": "1"}},
        {"tmpfs": {"run": ""}},
        {"tmpfs": {"/": ""}},
        {"tmpfs": {"/a/../../b": ""}},
        {"working_directory": "srv"},
        {"hostname": "a b"},
        {"hostname": "a" * 65},
        {"cpus": -1.0},
        {"cpus": float("nan")},
        {"cpus": float("inf")},
        {"cpus": 0.001},
        {"extra_hosts": ("db",)},
        {"extra_hosts": ("db:nowhere",)},
        {"dns_servers": ("nowhere",)},
        {"dns_servers": ("fe80::1%eth0",)},
        {"extra_hosts": ("db:fe80::1%eth0",)},
        {"network": "six", "address6": "fd00::50%eth0"},
    ],
)
def test_what_no_container_can_be_made_of_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        specification.require_valid(ContainerSpec("i", **fields))  # type: ignore[arg-type]


def test_the_network_of_the_host_is_refused_with_what_to_use() -> None:
    with pytest.raises(UnsupportedError, match="a kernel of its own") as refused:
        specification.require_valid(ContainerSpec("i", network="host"))
    assert "-p" in refused.value.hint


@pytest.mark.parametrize(
    "spec",
    [
        ContainerSpec("i", address="nonsense"),
        ContainerSpec("i", address="::1"),
        ContainerSpec("i", address="10.213.0.9", network="none"),
        ContainerSpec("i", network_aliases=("web",)),
        ContainerSpec("i", network="back", network_aliases=("a.b",)),
        ContainerSpec("i", network="back", network_aliases=("",)),
    ],
)
def test_addresses_and_names_that_nobody_can_have_are_refused(spec) -> None:
    with pytest.raises(InvalidError):
        specification.require_valid(spec)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"network_rate_in": 1024}, "rates have no effect"),
        ({"network_rate_out": 1024}, "rates have no effect"),
        ({"egress": "none"}, "--egress and --security-group have no effect"),
        ({"security_groups": ("web",)}, "--egress and --security-group have no effect"),
    ],
)
def test_what_limits_a_network_that_there_is_not_is_warned_of(fields: dict[str, object], said: str) -> None:
    spec = ContainerSpec("img", network="none", **fields)  # type: ignore[arg-type]
    (warning,) = specification.with_image_defaults(spec, IMAGE)[1]
    assert warning.startswith(said)
    assert specification.with_image_defaults(replace(spec, network=""), IMAGE)[1] == []
