# SPDX-License-Identifier: Apache-2.0
"""One daemon for the whole suite; tests that kill or starve a daemon start one of their own."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.harness import BUILD_TIMEOUT_S, Hyper, hyper


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`oci:` directories: `busybox` and `app` (three layers; user, entrypoint, deletions)."""
    root = tmp_path_factory.mktemp("layouts")
    images.write_layout(images.busybox_image(), root / "busybox", "test.local/busybox:latest")
    app = images.busybox_image(
        User="app", WorkingDir="/home/app", Entrypoint=["/bin/sh", "-c"], Cmd=["cat hello"]
    )
    images.write_layout(app, root / "app", "test.local/app:latest")
    return root


@pytest.fixture(scope="session")
def shared(layouts: Path) -> Iterator[Hyper]:
    with hyper(accel="auto", settings={"template.spares": "1"}) as host:  # as users have it
        for name in ("busybox", "app"):
            host.ok("pull", "-q", f"oci:{layouts}/{name}:test.local/{name}:latest")
        host.ok("template", "build", timeout_s=BUILD_TIMEOUT_S)  # what the tests start does not boot
        yield host


@pytest.fixture
def host(shared: Hyper) -> Iterator[Hyper]:
    """The suite's daemon, with the promise that the test leaves nothing behind."""
    yield shared
    shared.clear()
    shared.require_no_leaks()


@pytest.fixture
def name() -> str:
    return f"t-{secrets.token_hex(4)}"
