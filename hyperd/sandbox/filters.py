# SPDX-License-Identifier: Apache-2.0
"""What `ps --filter` chooses by. Pure."""

import re
from collections.abc import Callable, Sequence

from hyperd.errors import InvalidError
from hyperd.model.container import ContainerState, ContainerView

Test = Callable[[ContainerView, str], bool]

UP = (  # what `ps` shows unless all are asked for
    ContainerState.STARTING,
    ContainerState.RUNNING,
    ContainerState.PAUSED,
    ContainerState.STOPPING,
)


def _label(view: ContainerView, wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    labels = view.record.spec.labels
    return key in labels and (not equals or labels[key] == value)


def _exited(view: ContainerView, wanted: str) -> bool:
    return view.exit is not None and str(view.exit.code) == wanted


def _ancestor(view: ContainerView, wanted: str) -> bool:
    image = view.record.image_id
    return view.record.spec.image == wanted or image.removeprefix("sha256:").startswith(
        wanted.removeprefix("sha256:")
    )


def _name(view: ContainerView, wanted: str) -> bool:
    """A regular expression, of the name with or without Docker's slash."""
    return any(re.search(wanted, name) for name in (view.record.name, f"/{view.record.name}"))


def _volume(view: ContainerView, wanted: str) -> bool:
    """By the volume's name or the host's path, or by where it is mounted."""
    return any(wanted in (mount.source, mount.destination) for mount in view.record.spec.mounts)


_TESTS: dict[str, Test] = {
    "id": lambda view, wanted: view.record.sandbox_id.startswith(wanted),
    "name": _name,
    "label": _label,
    "status": lambda view, wanted: view.state == wanted,
    "ancestor": _ancestor,
    "exited": _exited,
    "volume": _volume,
}


def choose(
    views: Sequence[ContainerView],
    filters: Sequence[tuple[str, str]],
    *,
    everything: bool,
    find: Callable[[str], ContainerView],
) -> list[ContainerView]:
    """Newest first. The same key twice: either; different keys: both (docker ps).

    Raises InvalidError for an unknown key or status; what ``find`` raises for before= and since=.
    """
    wanted: dict[str, list[str]] = {}
    for key, value in filters:
        wanted.setdefault(key, []).append(value)
    unknown = set(wanted) - set(_TESTS) - {"before", "since"}
    if unknown:
        known = ", ".join(sorted([*_TESTS, "before", "since"]))
        raise InvalidError("is not a filter", subject=repr(sorted(unknown)[0]), hint=f"known: {known}")
    for status in wanted.get("status", []):
        if status not in set(ContainerState):
            raise InvalidError(
                "is not a status", subject=repr(status), hint=f"known: {', '.join(ContainerState)}"
            )
    for pattern in wanted.get("name", []):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidError(
                f"is not a regular expression: {error}", subject=repr(pattern[:100])
            ) from error
    before = [find(value).record.created_at for value in wanted.pop("before", [])]
    since = [find(value).record.created_at for value in wanted.pop("since", [])]
    if not everything and "status" not in wanted and "exited" not in wanted:
        wanted["status"] = list(UP)
    chosen = [
        view
        for view in views
        if all(any(_TESTS[key](view, value) for value in values) for key, values in wanted.items())
        and all(view.record.created_at < moment for moment in before)
        and all(view.record.created_at > moment for moment in since)
    ]
    return sorted(chosen, key=lambda view: view.record.created_at, reverse=True)
