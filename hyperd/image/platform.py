# SPDX-License-Identifier: Apache-2.0
"""Which of an image's platforms this host runs; the one place here that knows architectures by name."""

import platform
import re

from hyperd.errors import InvalidError
from hyperd.model.image import Platform

_FROM_UNAME = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "s390x": "s390x"}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm"}
# What every processor of the architecture can run; other variants ask for more than that.
_BASELINE = {"amd64": ("", "v1"), "arm64": ("", "v8"), "arm": ("", "v7", "v6", "v5")}
_WORD = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


def host_platform() -> Platform:
    machine = platform.machine()
    return Platform("linux", _FROM_UNAME.get(machine, machine))


def parse_platform(text: str) -> Platform:
    """``linux/arm64/v8``, ``arm64``. Raises InvalidError."""
    parts = text.lower().split("/")
    if len(parts) == 1 and parts[0] != "linux":
        parts = ["linux", *parts]
    if not 2 <= len(parts) <= 3 or not all(_WORD.fullmatch(part) for part in parts):
        raise InvalidError("a platform is OS/ARCHITECTURE[/VARIANT]", subject=repr(text)[:200])
    system, architecture, *variant = parts
    return Platform(system, _ALIASES.get(architecture, architecture), *variant)


def runs(offered: Platform, wanted: Platform) -> bool:
    """Nothing said matches anything: images made by `docker import` say nothing."""
    if offered.os not in ("", wanted.os) or offered.architecture not in ("", wanted.architecture):
        return False
    if wanted.variant:
        return offered.variant in ("", wanted.variant)
    return offered.variant in _BASELINE.get(wanted.architecture, (offered.variant,))


def preference(offered: Platform, wanted: Platform) -> int:
    """Lower is better, among those that run."""
    if offered.variant == wanted.variant:
        return 0
    order = _BASELINE.get(wanted.architecture, ())
    return 1 + (order.index(offered.variant) if offered.variant in order else len(order))
