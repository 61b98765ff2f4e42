# SPDX-License-Identifier: Apache-2.0
import pytest

from hyper.v1 import container_pb2 as pb
from hyperctl.endpoints import parse_network, parse_networks
from hyperctl.errors import InvalidError

MAC = "02:00:00:00:00:01"


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("back", pb.NetworkEndpoint(network="back")),
        ("container:web", pb.NetworkEndpoint(network="container:web")),
        ("back:ip6=fd00::9", pb.NetworkEndpoint(network="back", address6="fd00::9")),
        ("name=back,ip6=fd00::9", pb.NetworkEndpoint(network="back", address6="fd00::9")),
        ("name=back", pb.NetworkEndpoint(network="back")),
        ("back:ip=10.1.0.9", pb.NetworkEndpoint(network="back", address="10.1.0.9")),
        (
            f"name=back,alias=a,alias=b,mac-address={MAC},gw-priority=-1",
            pb.NetworkEndpoint(network="back", aliases=["a", "b"], mac_address=MAC, gateway_priority=-1),
        ),
        (
            f"back:mac-address={MAC},alias=a",
            pb.NetworkEndpoint(network="back", aliases=["a"], mac_address=MAC),
        ),
    ],
)
def test_a_network_is_a_name_or_fields(text, endpoint):
    assert parse_network(text) == endpoint


@pytest.mark.parametrize(
    "text", ["ip=10.0.0.1", "name=", "name=a,what=b", "back:ip=,alias=a", "back:ip=", "name=a,gw-priority=x"]
)
def test_what_is_no_network_is_refused(text):
    with pytest.raises(InvalidError):
        parse_network(text)


def test_flags_beside_it_are_of_the_first_network():
    first, second = parse_networks(["a", "b:alias=x"], ip="10.0.0.9", aliases=["y"], mac_address=MAC)
    assert first == pb.NetworkEndpoint(network="a", address="10.0.0.9", aliases=["y"], mac_address=MAC)
    assert second == pb.NetworkEndpoint(network="b", aliases=["x"])
    assert parse_networks([]) == [pb.NetworkEndpoint()]


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("a:ip=10.0.0.1", {"ip": "10.0.0.2"}),
        ("a:alias=x", {"aliases": ["y"]}),
        (f"a:mac-address={MAC}", {"mac_address": MAC}),
    ],
)
def test_what_is_said_twice_is_refused(text, flags):
    with pytest.raises(InvalidError, match="conflicting options"):
        parse_networks([text], **flags)
