# SPDX-License-Identifier: Apache-2.0
"""`hyper system reset`."""

from typing import Annotated

import typer

from hyper.v1 import system_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import pruning, tree
from hyperctl.output import print_rows

WARNING = """\
WARNING! This will remove:
  - all containers
  - all custom networks, security groups and floating IPs
  - the bridges, addresses and rules that this daemon has made on this host
"""

app = tree.group()


@tree.command(app, "reset")
def reset(
    *,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Do not ask, and end containers that run")
    ] = False,
) -> int:
    """Remove all containers and networks, and what they have of the host's.

    Images, volumes, snapshots and templates stay. The default network is made again when a container needs it.
    """
    pruning.require_consent(WARNING, "system reset", force=force)
    gone = hyperd.ask(lambda client: client.system.ResetSystem(pb.ResetSystemRequest(force=force)))
    for title, names in (
        ("Deleted Containers:", gone.containers),
        ("Deleted Networks:", gone.networks),
        ("Deleted Security Groups:", gone.security_groups),
        ("Released Floating IPs:", gone.floating),
    ):
        if names:
            print_rows("\n".join([title, *names, ""]))
    return 0
