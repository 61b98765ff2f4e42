# SPDX-License-Identifier: Apache-2.0
"""Sets as hyperd called them until 2026-11, by a checksum of 32 bits: what names stood for is taken over, once.

Those of groups hold nothing that is not put in again. All of them were of IPv4. Blocking.
"""

import errno
import re
import zlib
from collections.abc import Collection
from collections.abc import Set as AbstractSet

from hyperd.network.assembler import assemble
from hyperd.network.policy import sets
from hyperd.network.policy.hooks import table_of
from hyperd.network.policy.rules import Judged, Learned, services_of

_NAME = re.compile(r"(named_.+|members)_[0-9a-f]{8}")


def find_sets(base: str) -> set[str]:
    """Raises OSError."""
    return {name for name in sets.names_of(table_of(base)) if _NAME.fullmatch(name)}


def read_learned(base: str, judged: Judged, there: AbstractSet[str]) -> Learned | None:
    """None: it has no such set ``there``. Raises OSError."""
    of_service = {
        service: f"named_{judged.wire.name}_{zlib.crc32(str(service).encode()):08x}"
        for service in services_of(judged.egress)
    }
    if not there & set(of_service.values()):
        return None
    return {service: sets.read_learned(base, name) for service, name in of_service.items()}


def remove_sets(base: str, there: Collection[str]) -> None:
    """But those that chains of somebody who has gone still look up. Raises OSError."""
    for name in there:
        try:
            assemble(f"delete set inet {table_of(base)} {name}")
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT):
                raise
