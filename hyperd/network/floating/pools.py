# SPDX-License-Identifier: Apache-2.0
"""Which floating addresses there are, and which are free. Pure."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

from hyperd.errors import ExhaustedError, ExistsError, InvalidError

MAX_ADDRESSES = 4096  # of all pools


def parse_pools(texts: Iterable[str], subject: str = "[network] floating") -> tuple[IPv4Network, ...]:
    """Raises InvalidError for what is no range of IPv4, overlaps another, or is too large."""
    pools: list[IPv4Network] = []
    for text in texts:
        try:
            pool = IPv4Network(text)
        except ValueError as error:
            raise InvalidError(f"is no IPv4 network: {error}", subject=f"{subject} {text!r}") from error
        if pool.is_loopback or pool.is_multicast or pool.is_link_local or pool.is_unspecified:
            raise InvalidError("means something else to every host", subject=f"{subject} {text!r}")
        for other in pools:
            if pool.overlaps(other):
                raise InvalidError(f"overlaps {other}", subject=f"{subject} {text!r}")
        pools.append(pool)
    if sum(pool.num_addresses for pool in pools) > MAX_ADDRESSES:
        raise InvalidError(f"are more than {MAX_ADDRESSES} addresses", subject=subject)
    return tuple(pools)


def choose(
    pools: Sequence[IPv4Network],
    taken: Collection[IPv4Address],
    count: int,
    wanted: IPv4Address | None = None,
) -> list[IPv4Address]:
    """So many that are not ``taken``, or the one that is ``wanted``.

    Raises ExhaustedError, ExistsError for the wanted one, InvalidError.
    """
    if not pools:
        raise InvalidError(
            "there is no pool of floating addresses",
            hint='configure one: [network] floating = ["203.0.113.0/28"]',
        )
    if wanted is not None:
        if wanted not in set(_usable(pools)):
            raise InvalidError("is in no pool", subject=f"floating address {wanted}")
        if wanted in taken:
            raise ExistsError("is taken", subject=f"floating address {wanted}")
        return [wanted]
    if not 1 <= count <= MAX_ADDRESSES:
        raise InvalidError(f"{count} addresses are not between 1 and {MAX_ADDRESSES}")
    free = [address for address in _usable(pools) if address not in taken]
    if len(free) < count:
        raise ExhaustedError(
            f"{len(free)} floating addresses are free, not {count}",
            hint="`hyper fip release` gives one back",
        )
    return free[:count]


def _usable(pools: Iterable[IPv4Network]) -> Iterator[IPv4Address]:
    """But for what means all of a wire or none of it."""
    for pool in pools:
        yield from pool.hosts()
