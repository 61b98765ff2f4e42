# SPDX-License-Identifier: Apache-2.0
"""`--link`: Docker's variables and names for the containers that it is given."""

import pytest

from hyperd.errors import InvalidError, NotFoundError, WrongStateError
from hyperd.model.container import ContainerLink
from hyperd.model.network import NetworkSpec, PortRequest, Protocol
from hyperd.sandbox import links
from tests.fakes.world import created, started

DB = links.Linked(
    "my-db",
    "db",
    "10.0.0.9",
    ((53, Protocol.UDP), (5432, Protocol.TCP)),
    ("PATH=/bin", "A=1", "A=2=3", "HOME=/"),
)


def test_the_variables_are_dockers():
    assert links.variables("web", DB) == [
        "MY_DB_PORT=udp://10.0.0.9:53",
        "MY_DB_PORT_53_UDP=udp://10.0.0.9:53",
        "MY_DB_PORT_53_UDP_ADDR=10.0.0.9",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_PORT_5432_TCP=tcp://10.0.0.9:5432",
        "MY_DB_PORT_5432_TCP_ADDR=10.0.0.9",
        "MY_DB_PORT_5432_TCP_PORT=5432",
        "MY_DB_PORT_5432_TCP_PROTO=tcp",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_A=2=3",
    ]


async def test_one_is_told_of_another_when_it_starts(world, fleet):
    db = await started(
        fleet, name="db", env=("PASSWORD=x",), expose=("5432",), ports=(PortRequest(80, host_port=8080),)
    )
    address = db.view().attachments[0].address
    web = await started(fleet, name="web", env=("SQL_NAME=mine",), links=(ContainerLink("db", "sql"),))
    assert web.record.spec.links == (ContainerLink(db.record.sandbox_id, "sql"),)
    plan = plan_of(world, web)
    assert f"SQL_PORT_5432_TCP=tcp://{address}:5432" in plan.process.env
    assert f"SQL_PORT=tcp://{address}:80" in plan.process.env
    assert "SQL_ENV_PASSWORD=x" in plan.process.env
    assert "SQL_NAME=mine" in plan.process.env
    assert [(entry.address, entry.names) for entry in world.agent(web).wiring.hosts] == [
        (address, ("sql",)),
        (address, ("db",)),
    ]
    assert web.record.spec.env == ("SQL_NAME=mine",), "what it was asked to be stays"


async def test_without_an_alias_it_is_called_as_it_was_asked_for(fleet):
    db = await created(fleet, name="db")
    web = await created(fleet, links=(ContainerLink("db"),))
    assert web.record.spec.links == (ContainerLink(db.record.sandbox_id, "db"),)


async def test_what_runs_not_is_not_linked_to_at_a_start(fleet):
    db = await created(fleet, name="db")
    web = await created(fleet, name="web", links=(ContainerLink("db", "sql"),))
    with pytest.raises(WrongStateError, match="cannot link to a non running container: db as sql"):
        await web.start()
    await db.start()
    await web.start()


async def test_links_lead_to_neighbours(world, fleet):
    await world.network.create_network(NetworkSpec("back"))
    await created(fleet, name="db", network="back")
    with pytest.raises(InvalidError, match="on no network of it"):
        await created(fleet, links=(ContainerLink("db"),))
    with pytest.raises(NotFoundError):
        await created(fleet, links=(ContainerLink("nobody"),))
    with pytest.raises(InvalidError):
        await created(fleet, network="back", links=(ContainerLink("db", "a b"),))
    with pytest.raises(InvalidError, match="more than"):
        await created(fleet, network="back", links=(ContainerLink("db"),) * (links.MAX_LINKS + 1))


async def test_on_a_network_with_names_an_alias_is_a_name_and_nothing_is_told_at_the_start(world, fleet):
    await world.network.create_network(NetworkSpec("back"))
    db = await created(fleet, name="db", network="back")
    web = await started(fleet, name="web", network="back", links=(ContainerLink("db", "sql"),))
    assert not any(entry.startswith("SQL_") for entry in plan_of(world, web).process.env)
    assert [named.links for named in fleet.named()] == [(("sql", db.record.sandbox_id),)]


def plan_of(world, handle):
    return next(iter(world.agent(handle).containers.values())).plan
