# SPDX-License-Identifier: Apache-2.0
"""`hyper` as it is at a terminal."""

import sys

from tests.terminal import terminal

ENTRY = [sys.executable, "-m", "hyperctl.main"]


def at_a_terminal(*args):
    """Status, and all that is seen. Wants ``with_environ``."""
    with terminal(["sh", "-c", '"$@"; echo "status $?"', "sh", *ENTRY, *args]) as it:
        found = it.wait_for(rb"(?s)^(.*)status (\d+)\r\n")
        return int(found[2]), found[1].decode().replace("\r\n", "\n")
