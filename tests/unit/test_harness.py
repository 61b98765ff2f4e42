# SPDX-License-Identifier: Apache-2.0
"""The leak check: whatever is left when it looks is a leak, but for what a template's build or a spare holds."""

from collections.abc import Iterator

import pytest

from tests.harness import Hyper

BEGAN = "2026-01-01T12:00:00.000Z INFO hyperd.sandbox.template template being built shape=x\n"
BUILT = "2026-01-01T12:00:01.000Z INFO hyperd.sandbox.template template built shape=x template=abc\n"
SPARE = "ab" * 32
SPARES = "2026-01-01T12:00:02.000Z INFO hyperd.sandbox.spares "
MAKING, READY = f"{SPARES}spare being made shape=x\n", f"{SPARES}spare ready shape=x id={SPARE}\n"
PROMISED = f"{SPARES}spare promised id={SPARE}\n"
LET_GO, GONE = f"{SPARES}spare let go id={SPARE} why=x\n", f"{SPARES}spare gone id={SPARE}\n"


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
    host._forget_the_log()
    host.looks = [(["draft"], "")]
    assert host.leaks() == ["draft"]


def test_a_spare_may_be_there_while_it_is_ready_and_no_longer(host: Left) -> None:
    tap = f"hyt{SPARE[:12]}"
    host.tell(MAKING + READY)
    host.looks = [([tap, "tap"], "")]
    assert host.leaks() == ["tap"]
    host.tell(PROMISED)
    host.looks = [([tap], "")]
    assert host.leaks() == [tap]  # it is a container's now
    host.tell(LET_GO + GONE)
    host.looks = [([tap], "")]
    assert host.leaks() == [tap]


def test_a_spare_that_comes_or_goes_is_waited_for(host: Left) -> None:
    host.looks = [(["disk"], MAKING + READY), ([f"lease {SPARE}"], "")]
    assert host.leaks() == []
    host.looks = [([f"lease {SPARE}"], LET_GO + GONE), ([], "")]
    assert host.leaks() == []


def test_a_spare_of_a_daemon_that_was_killed_is_a_leak(host: Left) -> None:
    host.tell(MAKING + READY)
    host._forget_the_log()
    host.looks = [([f"lease {SPARE}"], "")]
    assert host.leaks() == [f"lease {SPARE}"]
