# SPDX-License-Identifier: Apache-2.0
"""`hyper network ls --filter`, as Docker has it: any of what is said of one key, and all keys. Pure."""

from collections.abc import Sequence

from hyper.v1 import network_pb2 as pb
from hyperctl import options
from hyperctl.errors import InvalidError

NETWORK_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
_TYPES = ("builtin", "custom")
Filters = Sequence[tuple[str, str]]


def require_network_filters(wanted: Filters) -> None:
    """Raises InvalidError for a value that is none of its key's."""
    for key, value in wanted:
        if key == "dangling":
            options.parse_bool("--filter dangling", value)
        elif key == "type" and value not in _TYPES:
            raise InvalidError(f"invalid argument {value!r}: {' or '.join(_TYPES)}", subject="--filter type")


def is_wanted(network: pb.Network, wanted: Filters) -> bool:
    """All of its labels; of all else any of what is said."""
    labels = [value for key, value in wanted if key == "label"]
    others: dict[str, list[str]] = {}
    for key, value in wanted:
        if key != "label":
            others.setdefault(key, []).append(value)
    return all(_has_label(network, label) for label in labels) and all(
        any(_is(network, key, value) for value in values) for key, values in others.items()
    )


def _is(network: pb.Network, key: str, value: str) -> bool:
    is_custom = network.HasField("created_at")
    match key:
        case "dangling":
            return (is_custom and not network.members) == options.parse_bool("--filter dangling", value)
        case "driver":
            return value == "bridge"
        case "id":
            return value in network.id
        case "name":
            return value in network.spec.name
        case "scope":
            return value == "local"
        case _:
            return (value == "custom") == is_custom


def _has_label(network: pb.Network, text: str) -> bool:
    name, equals, value = text.partition("=")
    labels = network.spec.labels
    return name in labels and (not equals or labels[name] == value)
