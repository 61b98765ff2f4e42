# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime, timedelta

import pytest

from hyperd.errors import InvalidError
from hyperd.model.container import (
    ContainerRecord,
    ContainerSpec,
    ContainerState,
    ContainerView,
    Exit,
    ExitReason,
    Sizing,
)
from hyperd.model.image import ImageId
from hyperd.model.vm import SandboxId
from hyperd.sandbox import filters

DAY = datetime(2026, 1, 1, tzinfo=UTC)


def view(
    digit: str, name: str, state: ContainerState, day: int, code: int | None = None, **labels: str
) -> ContainerView:
    record = ContainerRecord(
        SandboxId(digit * 64), name, ContainerSpec("alpine:3", labels=labels), ImageId("sha256:abc"), ("sh",),
        Sizing(1, 256), DAY + timedelta(days=day),
    )  # fmt: skip
    return ContainerView(record, state, 1, exit=None if code is None else Exit(code, ExitReason.EXITED))


VIEWS = [
    view("a", "web", ContainerState.RUNNING, 0, tier="front"),
    view("b", "db", ContainerState.EXITED, 1, 3, tier="back"),
    view("c", "webhook", ContainerState.CREATED, 2),
    view("d", "job", ContainerState.STOPPING, 3),
]


def names(*wanted: tuple[str, str], everything: bool = True) -> list[str]:
    found = {item.record.name: item for item in VIEWS}
    chosen = filters.choose(VIEWS, wanted, everything=everything, find=found.__getitem__)
    return [item.record.name for item in chosen]


def test_without_a_filter_everything_newest_first_or_what_runs() -> None:
    assert names() == ["job", "webhook", "db", "web"]
    assert names(everything=False) == ["job", "web"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([("name", "web")], ["webhook", "web"]),
        ([("name", "/db")], ["db"]),
        ([("name", "^web$")], ["web"]),
        ([("name", "^/?(web|db)$")], ["db", "web"]),
        ([("name", "b$")], ["job", "db", "web"]),
        ([("id", "cc")], ["webhook"]),
        ([("label", "tier")], ["db", "web"]),
        ([("label", "tier=back")], ["db"]),
        ([("label", "tier=")], []),
        ([("status", "created"), ("status", "exited")], ["webhook", "db"]),
        ([("name", "web"), ("status", "running")], ["web"]),
        ([("exited", "3")], ["db"]),
        ([("ancestor", "alpine:3")], ["job", "webhook", "db", "web"]),
        ([("ancestor", "ab")], ["job", "webhook", "db", "web"]),
        ([("ancestor", "busybox")], []),
        ([("before", "webhook")], ["db", "web"]),
        ([("since", "db")], ["job", "webhook"]),
    ],
)
def test_a_key_twice_is_either_different_keys_are_both(
    wanted: list[tuple[str, str]], expected: list[str]
) -> None:
    assert names(*wanted) == expected


def test_asking_for_a_status_looks_at_everything() -> None:
    assert names(("status", "exited"), everything=False) == ["db"]
    assert names(("exited", "3"), everything=False) == ["db"]


def test_what_is_no_filter_is_refused() -> None:
    with pytest.raises(InvalidError, match="is not a filter"):
        names(("colour", "red"))
    with pytest.raises(InvalidError, match="is not a status"):
        names(("status", "asleep"))


def test_a_name_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(InvalidError, match="regular expression"):
        names(("name", "web("))
