# SPDX-License-Identifier: Apache-2.0
"""Commands that do the same to each of several things that are named."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from hyperctl import client as hyperd
from hyperctl.client import Client
from hyperctl.output import render_document
from hyperctl.render import render_json
from hyperctl.template import Template

Document = Mapping[str, Any]


def inspect(names: Sequence[str], form: str, find: Callable[[Client, str], Awaitable[Document]]) -> int:
    """As `docker inspect`: what is found is shown, what is not is told and makes the exit status."""
    if form and form != "json":
        Template(form)  # what is wrong with it is said before anything is asked
    documents: list[Document] = []

    async def work() -> int:
        async with hyperd.connect() as client:

            async def look(name: str) -> None:
                documents.append(await find(client, name))

            return await hyperd.for_each(client, names, look, echo=False)

    status = hyperd.run(work())
    if form and form != "json":
        for document in documents:
            print(render_document(document, form))
    else:
        print(render_json(documents, indent=None if form else 4))
    return status


def remove(
    names: Sequence[str],
    away: Callable[[Client, str], Awaitable[object]],
    *,
    forgiven: frozenset[int] = frozenset(),
) -> int:
    """Each, and its name once it is gone; exit statuses that are ``forgiven`` are no failure."""

    async def work() -> int:
        async with hyperd.connect() as client:
            return await hyperd.for_each(client, names, lambda name: away(client, name), forgiven=forgiven)

    return hyperd.run(work())
