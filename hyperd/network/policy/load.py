# SPDX-License-Identifier: Apache-2.0
"""Rules into the kernel: all that a text says, or nothing of it."""

from hyperd.errors import DeniedError, HyperError, UnavailableError
from hyperd.host import process

_TIMEOUT_S = 20.0


async def load_rules(text: str, table: str) -> None:
    """Raises UnavailableError when nft is missing or refuses, DeniedError."""
    finished = await process.run(["nft", "-f", "-"], timeout_s=_TIMEOUT_S, stdin=text.encode())
    if finished.returncode == 0:
        return
    refusal = finished.stderr_tail
    kind: type[HyperError] = DeniedError if "not permitted" in refusal else UnavailableError
    raise kind(
        "its rules were refused",
        subject=f"table inet {table}",
        evidence=refusal,
        hint="a sandbox that needs them does not run without",
    )
