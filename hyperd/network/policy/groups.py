# SPDX-License-Identifier: Apache-2.0
"""``Groups``: the security groups that there are, in the records and here."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

from hyperd.errors import ExhaustedError, ExistsError, HyperError, NotFoundError, WrongStateError
from hyperd.host.database import Database
from hyperd.model.policy import Direction, GroupRule, PortRange, SecurityGroup, Service
from hyperd.network.policy.group_document import parse_security_group

MIGRATION = """CREATE TABLE security_group (
    name TEXT PRIMARY KEY, document TEXT NOT NULL, created_at TEXT NOT NULL
) STRICT"""
MAX_GROUPS = 500


class Groups:
    """``changed``: what has to be done when a group says something else."""

    def __init__(self, database: Database, changed: Callable[[str], Awaitable[None]]) -> None:
        self._database = database
        self._changed = changed
        self._groups: dict[str, SecurityGroup] = {}
        self._changing = asyncio.Lock()  # a record, and what is known of it

    async def load(self) -> None:
        """The table is there already."""

        def work(connection: sqlite3.Connection) -> list[tuple[str, str]]:
            rows = connection.execute("SELECT name, document FROM security_group ORDER BY name")
            return [(row[0], row[1]) for row in rows]

        for name, document in await self._database.transaction(work):
            self._groups[name] = parse_kept(document)

    def list_groups(self) -> list[SecurityGroup]:
        """By name."""
        return [self._groups[name] for name in sorted(self._groups)]

    def get(self, name: str) -> SecurityGroup:
        """Raises NotFoundError."""
        if name not in self._groups:
            raise NotFoundError("no such security group", subject=name, hint="`hyper sg ls` lists all")
        return self._groups[name]

    async def create(self, document: str, name: str = "") -> SecurityGroup:
        """Raises InvalidError, ExistsError, NotFoundError for one that it speaks of, ExhaustedError."""
        group = parse_security_group(document, name)
        async with self._changing:
            self._require_known(group)
            if group.name in self._groups:
                raise ExistsError("there is one of this name", subject=f"security group {group.name}")
            if len(self._groups) >= MAX_GROUPS:
                raise ExhaustedError(
                    f"there are {MAX_GROUPS} security groups", hint="`hyper sg rm` removes one"
                )
            await self._save(group)
        return group

    async def update(self, document: str, name: str = "") -> SecurityGroup:
        """Whole, and at once for all that have it. Raises InvalidError, NotFoundError."""
        group = parse_security_group(document, name)
        async with self._changing:
            self.get(group.name)
            self._require_known(group)
            await self._save(group)
        await self._changed(group.name)
        return group

    async def remove(self, name: str) -> None:
        """Raises NotFoundError, WrongStateError while another group speaks of it."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM security_group WHERE name = ?", (name,))

        async with self._changing:
            group = self.get(name)
            users = [
                other.name for other in self.list_groups() if other.name != name and name in _spoken_of(other)
            ]
            if users:
                raise WrongStateError(
                    f"the rules of {', '.join(users)} speak of it", subject=f"security group {name}"
                )
            del self._groups[name]  # first: from here on nobody gets it
            try:
                await self._database.transaction(work, lasting=True)
            except HyperError:
                self._groups[name] = group
                raise

    def _require_known(self, group: SecurityGroup) -> None:
        for name in _spoken_of(group) - {group.name}:
            self.get(name)

    async def _save(self, group: SecurityGroup) -> None:
        row = (group.name, render_document(group), datetime.now(UTC).isoformat())

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO security_group VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET document = excluded.document",
                row,
            )

        await self._database.transaction(work, lasting=True)
        self._groups[group.name] = group


def render_document(group: SecurityGroup) -> str:
    """As it is kept."""
    rules = [_rule(rule) for rule in group.rules]
    return json.dumps({"name": group.name, "description": group.description, "rules": rules})


def parse_kept(document: str) -> SecurityGroup:
    """What ``render_document`` made."""
    kept = json.loads(document)
    return SecurityGroup(kept["name"], kept["description"], tuple(_kept_rule(rule) for rule in kept["rules"]))


def _kept_rule(rule: dict[str, Any]) -> GroupRule:
    first, network = rule.get("port_range_min"), rule.get("remote_ip_prefix")
    ports = (PortRange(first, rule["port_range_max"]),) if first is not None else ()
    return GroupRule(
        Direction(rule["direction"]),
        Service(rule["protocol"], ports),
        ip_network(network) if network else None,
        rule.get("remote_group_name", ""),
    )


def _rule(rule: GroupRule) -> dict[str, str | int]:
    made: dict[str, str | int] = {"direction": rule.direction.value, "protocol": rule.service.protocol}
    for ports in rule.service.ports:
        made |= {"port_range_min": ports.first, "port_range_max": ports.last}
    if rule.network is not None:
        made["remote_ip_prefix"] = str(rule.network)
    if rule.group:
        made["remote_group_name"] = rule.group
    return made


def _spoken_of(group: SecurityGroup) -> set[str]:
    return {rule.group for rule in group.rules if rule.group}
