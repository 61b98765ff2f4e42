# SPDX-License-Identifier: Apache-2.0
"""The leak check: whatever is left when it looks is a leak, but for what a template's build holds meanwhile."""

from collections.abc import Iterator

import pytest

from tests.harness import Hyper

BEGAN = "2026-01-01T12:00:00.000Z INFO hyperd.sandbox.template template being built shape=x\n"
BUILT = "2026-01-01T12:00:01.000Z INFO hyperd.sandbox.template template built shape=x template=abc\n"


class Left(Hyper):
    """``looks``: what is left at each look, and what the log says by its end."""

    looks: list[tuple[list[str], str]]

    def _left(self) -> list[str]:
        left, told = self.looks.pop(0)
        self.tell(told)
        return left

    def tell(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(text)


@pytest.fixture
def host() -> Iterator[Left]:
    host = Left()
    yield host
    host.destroy()


def test_a_leak_that_would_go_by_itself_is_a_leak(host: Left) -> None:
    host.tell(BEGAN + BUILT)
    host.looks = [(["tap"], ""), ([], "")]
    assert host.leaks() == ["tap"]


def test_what_a_build_has_that_began_meanwhile_is_none(host: Left) -> None:
    host.looks = [(["tap"], BEGAN + BUILT), ([], "")]
    assert host.leaks() == []
    host.looks = [(["tap"], BEGAN + BUILT), (["tap"], "")]
    assert host.leaks() == ["tap"]


def test_a_build_of_a_daemon_that_was_killed_is_waited_for_by_nobody(host: Left) -> None:
    host.tell(BEGAN)
    host._forget_builds()
    host.looks = [(["draft"], "")]
    assert host.leaks() == ["draft"]
