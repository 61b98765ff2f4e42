# SPDX-License-Identifier: Apache-2.0
"""How a user names what has an id and perhaps a name."""

from collections.abc import Mapping
from typing import TypeVar

from hyperd.errors import InvalidError, NotFoundError

Id = TypeVar("Id", bound=str)


def resolve(reference: str, names: Mapping[Id, str], what: str, hint: str = "") -> Id:
    """As Docker: a full id, else a name, else the beginning of an id. ``names``: of all ids, "" = none.

    Raises NotFoundError, InvalidError (of several of them: which one is not guessed).
    """
    exact = [found for found in names if found == reference]
    named = [found for found, name in names.items() if name and name == reference]
    begun = [found for found in names if reference and found.startswith(reference)]
    meant = exact or named or begun
    if not meant:
        raise NotFoundError(f"no such {what}", subject=reference[:300], hint=hint)
    if len(meant) > 1:
        raise InvalidError(
            f"more than one {what} has {'this name' if named else 'an id that begins so'}",
            subject=reference,
            evidence=", ".join(found[:20] for found in meant[:5]),
            hint="give the id" if named else "give more digits",
        )
    return meant[0]
