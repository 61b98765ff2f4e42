# SPDX-License-Identifier: Apache-2.0
"""What a daemon does behind its users' backs, as its log tells it: builds of templates, and spares. Pure."""

import re

# What the log says of a template's build: before anything of it is there, and when nothing of it is left.
BUILD_BEGAN = b" hyperd.sandbox.template template being built "
BUILD_ENDED = tuple(
    b" hyperd.sandbox.template %b " % word for word in (b"template built", b"template not built", b"bug")
)
_SPARES = b" hyperd.sandbox.spares "
_MAKING = _SPARES + b"spare being made "
_MADE = tuple(_SPARES + word for word in (b"spare ready ", b"spare not made ", b"bug "))
_GOING = _SPARES + b"spare let go "
_GONE = tuple(_SPARES + word for word in (b"spare gone ", b"spare not removed "))
_OF_ONE = re.compile(re.escape(_SPARES) + rb"spare (ready|promised|let go) .*?\bid=([0-9a-f]{64})")


def begun(told: bytes) -> int:
    """How many things, builds and spares, were begun so far."""
    return sum(told.count(word) for word in (BUILD_BEGAN, _MAKING, _GOING))


def under_way(told: bytes) -> int:
    """How many of them have not ended."""
    ended = sum(told.count(word) for word in (*BUILD_ENDED, *_MADE, *_GONE))
    return begun(told) - ended


def spares(told: bytes) -> set[str]:
    """The ids of those that stand ready: what they have is no leak."""
    ready: set[str] = set()
    for what, spare_id in _OF_ONE.findall(told):
        (ready.add if what == b"ready" else ready.discard)(spare_id.decode())
    return ready
