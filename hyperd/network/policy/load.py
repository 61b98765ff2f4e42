# SPDX-License-Identifier: Apache-2.0
"""Rules into the kernel: all that a text says, or nothing of it."""

from hyperd.errors import DeniedError, HyperError, UnavailableError
from hyperd.host import process
from hyperd.network.policy.rules import table_of

_TIMEOUT_S = 20.0


async def load_rules(text: str, base: str) -> None:
    """Raises UnavailableError when nft is missing or refuses, DeniedError."""
    finished = await process.run(["nft", "-f", "-"], timeout_s=_TIMEOUT_S, stdin=text.encode())
    if finished.returncode == 0:
        return
    refusal = finished.stderr_tail
    kind: type[HyperError] = DeniedError if "not permitted" in refusal else UnavailableError
    raise kind(
        "the rules of a policy were refused",
        subject=f"table inet {table_of(base)}",
        evidence=refusal,
        hint="a sandbox with a policy does not run without it",
    )
