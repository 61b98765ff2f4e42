# SPDX-License-Identifier: Apache-2.0
"""Base images of builds: from a registry, newer ones when they are asked for, and under the host's signature policy."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import images
from tests.harness import Hyper, hyper
from tests.integration.test_build import build, require_built, users_images
from tests.registry import Registry, registry

ACCEPT, REJECT = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]


@dataclass(frozen=True)
class Policy:
    place: Path

    def set(self, default: list[dict[str, str]], **transports: Mapping[str, Any]) -> None:
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.place.write_text(json.dumps({"default": default, "transports": transports}))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy(tmp_path_factory.mktemp("home") / ".config/containers/policy.json")


@pytest.fixture(scope="module")
def daemon(policy: Policy) -> Iterator[Hyper]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(policy.place.parents[2]))  # where skopeo and hyperd look for it
        policy.set(ACCEPT)
        with hyper(settings={"build.memory_mib": "512"}) as host:
            yield host


@pytest.fixture
def host(daemon: Hyper, policy: Policy) -> Iterator[Hyper]:
    policy.set(ACCEPT)
    yield daemon
    assert not daemon.ok("ps", "-aq")
    assert not daemon.leaks()


@pytest_asyncio.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path / "hub") as running:
        yield running


def base(word: str) -> images.BuiltImage:
    # Other tools give a file the mode of its last name, so a hard link's has to be right.
    entries = [replace(entry, mode=0o755) if entry.linkname else entry for entry in images.busybox_entries()]
    history = [{"created": "2026-01-02T03:04:05Z", "created_by": word}] * 2
    layers = [entries, [images.file("word", f"{word}\n")]]
    return images.build(layers, config=images.busybox_config(), top={"history": history})


def refused(host: Hyper, name: str, *arguments: str) -> str:
    """What a build that the policy does not let begin says."""
    before = users_images(host)
    finished = build(host, *arguments, "-t", "never:1", "-", stdin=f"FROM {name}\n".encode())
    said = finished.stderr.decode()
    assert finished.returncode == 8, said
    assert users_images(host) == before
    return said


def test_a_builder_that_the_policy_rejects_builds_nothing_and_says_what_to_allow(host: Hyper, policy: Policy):
    """The first of this file: the builder is not here yet."""
    policy.set(REJECT)
    said = refused(host, "scratch")
    assert "policy" in said
    assert "builder" in said
    policy.set(REJECT, oci={"": ACCEPT})
    require_built(build(host, "-", stdin=b"FROM scratch\nLABEL a=b\n"), host)


async def test_a_base_comes_from_its_registry_and_a_newer_one_when_it_is_asked_for(
    host: Hyper, hub: Registry
):
    name = await hub.push(base("old"), "base:1")
    dockerfile = f"FROM {name}\nRUN cat /word > /seen\n".encode()
    said = require_built(build(host, "-t", "mine:1", "-", stdin=dockerfile), host)
    assert f"Pulling {name}" in said
    assert host.ok("run", "--rm", "mine:1", "cat", "/seen") == "old"

    await hub.push(base("new"), "base:1")
    said = require_built(build(host, "-t", "mine:1", "-", stdin=dockerfile), host)
    assert "Pulling" not in said
    assert host.ok("run", "--rm", "mine:1", "cat", "/seen") == "old"
    require_built(build(host, "--pull", "-t", "mine:1", "-", stdin=dockerfile), host)
    assert host.ok("run", "--rm", "mine:1", "cat", "/seen") == "new"


async def test_a_base_that_the_policy_rejects_is_not_built_on(host: Hyper, hub: Registry, policy: Policy):
    name = await hub.push(base("evil"), "evil:1")
    policy.set(ACCEPT, docker={hub.address: REJECT})
    assert name in refused(host, name)
    policy.set(ACCEPT)
    host.ok("pull", "-q", name)
    policy.set(ACCEPT, docker={hub.address: REJECT})
    assert name in refused(host, name, "--pull")
