# SPDX-License-Identifier: Apache-2.0
"""What one who asks may know: the names of all networks that it is on, and what it alone calls others."""

from ipaddress import IPv4Network, IPv6Network

import dns.message
import dns.rcode
import dns.reversename

from hyperd.model.network import Named
from hyperd.model.vm import SandboxId
from hyperd.network.directory import Directory
from hyperd.network.settings import BridgeSettings
from hyperd.network.zone import answer

WEB, DB, LONER = (SandboxId(letter * 64) for letter in "abc")


def settings(name, number, **fields):
    return BridgeSettings(0, name=name, subnet=IPv4Network(f"10.{number}.0.0/24"), has_names=True, **fields)


FRONT, BACK = settings("front", 1), settings("back", 2, internal=True)
NAMED = [
    Named("front", "10.1.0.2", ("web",), WEB, (("sql", DB),)),
    Named("back", "10.2.0.2", ("web",), WEB, (("sql", DB),)),
    Named("back", "10.2.0.3", ("db",), DB),
    Named("back", "10.2.0.4", ("loner",), LONER),
]
DIRECTORY = Directory(lambda: [FRONT, BACK], lambda: NAMED)


def asked(network, asker, name, kind="A"):
    made = answer(DIRECTORY.zone(network, asker), dns.message.make_query(name, kind))
    if made is None:
        return None
    return {str(record) for rrset in made.answer for record in rrset} or dns.rcode.to_text(made.rcode())


def test_who_is_on_several_networks_knows_the_names_of_all():
    assert asked(FRONT, "10.1.0.2", "db") == asked(FRONT, "10.1.0.2", "db.back") == {"10.2.0.3"}
    assert asked(FRONT, "10.1.0.2", "db.front") is None, "which may be somebody's"
    assert asked(FRONT, "10.1.0.2", "web") == {"10.1.0.2", "10.2.0.2"}
    assert asked(FRONT, "10.1.0.2", dns.reversename.from_address("10.2.0.3"), "PTR") == {"db.back."}


def test_who_is_on_one_network_knows_its_names_alone():
    assert asked(FRONT, "10.1.0.9", "db") == "NXDOMAIN"
    assert asked(BACK, "10.2.0.3", "web") == {"10.2.0.2"}
    assert asked(BACK, "10.2.0.3", dns.reversename.from_address("10.1.0.2"), "PTR") is None


def test_the_world_is_asked_where_one_of_its_networks_leads_out():
    assert DIRECTORY.zone(BACK, "10.2.0.2").is_outward
    assert not DIRECTORY.zone(BACK, "10.2.0.3").is_outward
    assert DIRECTORY.zone(FRONT, "10.1.0.9").is_outward


def test_an_alias_of_a_link_is_known_to_who_has_the_link():
    assert asked(FRONT, "10.1.0.2", "SQL") == {"10.2.0.3"}
    assert asked(BACK, "10.2.0.4", "sql") == "NXDOMAIN"


def test_a_network_that_was_just_made_has_no_names_yet():
    new = settings("new", 3)
    assert asked(new, "10.3.0.2", "web") == "NXDOMAIN"


def test_names_have_addresses_of_both_kinds_and_lead_back():
    six = settings("six", 4, subnet6=IPv6Network("fd12:3456::/64"))
    named = [
        Named("six", "10.4.0.2", ("web",), WEB, address6="fd12:3456::2"),
        Named("front", "10.1.0.3", ("db",), DB),
    ]
    directory = Directory(lambda: [six, FRONT], lambda: named)

    def ask(name, kind, network=six):
        made = answer(directory.zone(network, ""), dns.message.make_query(name, kind))
        return made and (
            [str(record) for rrset in made.answer for record in rrset],
            dns.rcode.to_text(made.rcode()),
        )

    assert ask("web", "AAAA") == (["fd12:3456::2"], "NOERROR")
    assert ask("web", "A") == (["10.4.0.2"], "NOERROR")
    assert ask("host.hyper.internal", "AAAA") == (["fd12:3456::1"], "NOERROR")
    assert ask(dns.reversename.from_address("fd12:3456::2"), "PTR") == (["web.six."], "NOERROR")
    assert ask(dns.reversename.from_address("fd12:3456::9"), "PTR") == ([], "NXDOMAIN")
    assert ask(dns.reversename.from_address("2001:db8::1"), "PTR") is None
    assert ask("db", "AAAA", FRONT) == ([], "NOERROR"), "it is there, and has none"
    assert ask("nobody", "AAAA") == ([], "NXDOMAIN")


def test_names_with_dots_are_names_too():
    named = [
        Named("front", "10.1.0.2", ("web.1",), WEB, (("db.local", DB),)),
        Named("front", "10.1.0.3", ("db",), DB),
    ]
    directory = Directory(lambda: [FRONT], lambda: named)

    def known(name):
        made = answer(directory.zone(FRONT, "10.1.0.2"), dns.message.make_query(name, "A"))
        return made and [str(record) for rrset in made.answer for record in rrset]

    assert known("web.1") == known("WEB.1.front") == ["10.1.0.2"]
    assert known("db.local") == ["10.1.0.3"]
    assert known("web.2") is None


def test_a_network_s_name_hides_no_names_of_the_world():
    com = settings("com", 3)
    directory = Directory(lambda: [com], lambda: [Named("com", "10.3.0.2", ("web",), WEB)])
    zone = directory.zone(com, "10.3.0.2")
    assert answer(zone, dns.message.make_query("example.com", "A")) is None
    assert answer(zone, dns.message.make_query("com", "A")).rcode() == dns.rcode.NXDOMAIN
    assert answer(zone, dns.message.make_query("web.com", "A")).answer
