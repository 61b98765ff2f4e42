# SPDX-License-Identifier: Apache-2.0
"""Which uids exist here: in a user namespace not all do, and what they own cannot be made."""

from pathlib import Path


def are_mapped(uids: range, uid_map: str) -> bool:
    """``uid_map``: as user_namespaces(7) describes it; first uid inside, first outside, how many."""
    for line in uid_map.splitlines():
        first, _, count = (int(word) for word in line.split())
        if first <= uids.start and uids.stop <= first + count:
            return True
    return False


def read_uid_map() -> str:
    return Path("/proc/self/uid_map").read_text()
