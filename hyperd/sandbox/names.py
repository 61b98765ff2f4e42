# SPDX-License-Identifier: Apache-2.0
"""Names for containers that were given none, in Docker's manner: adjective_surname."""

import re
import secrets
from collections.abc import Container

from hyperd.errors import ExhaustedError, InvalidError

_VALID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")

_ADJECTIVES = (
    "able", "amber", "brave", "bright", "calm", "candid", "clever", "cosmic", "crisp", "daring", "deft", "eager",
    "early", "fair", "fleet", "frank", "fresh", "gentle", "glad", "golden", "grand", "hardy", "honest", "humble",
    "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry", "modest", "neat", "nimble", "noble",
    "patient", "placid", "plucky", "polite", "proud", "quick", "quiet", "rapid", "ready", "robust", "serene", "sharp",
    "silent", "sincere", "sleek", "smooth", "solid", "spry", "stable", "steady", "sturdy", "sunny", "swift", "tidy",
    "tranquil", "upbeat", "vivid", "warm", "wise", "witty", "zesty",
)  # fmt: skip
_SURNAMES = (
    "allen", "babbage", "bell", "borg", "carson", "cerf", "clarke", "codd", "cray", "curie", "darwin", "diffie",
    "dijkstra", "easley", "elion", "engelbart", "euler", "feynman", "franklin", "galois", "gauss", "germain",
    "goldberg", "goldwasser", "hamilton", "hawking", "hellman", "hodgkin", "hopper", "jackson", "johnson", "kalam",
    "kay", "keller", "kepler", "kilby", "knuth", "lamarr", "lamport", "leavitt", "liskov", "lovelace", "matsumoto",
    "mayer", "mccarthy", "mclean", "meitner", "mirzakhani", "moore", "nash", "newton", "noether", "pascal", "perlman",
    "pike", "ramanujan", "ritchie", "rubin", "shannon", "tesla", "thompson", "torvalds", "turing", "wiles", "wu",
)  # fmt: skip


def invent(taken: Container[str]) -> str:
    """A free name. Raises ExhaustedError after many tries, when nearly all are taken."""
    for attempt in range(64):
        name = f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_SURNAMES)}"
        if attempt > 8:
            name += f"_{secrets.token_hex(2)}"
        if name not in taken:
            return name
    raise ExhaustedError("no free name was found", hint="give one with --name")


def require_valid(name: str) -> None:
    if not _VALID.fullmatch(name):
        raise InvalidError(
            "is not a name",
            subject=repr(name[:140]),
            hint="letters, digits, _ . and -, not first, at most 128",
        )
