# SPDX-License-Identifier: Apache-2.0
import pytest

from hyper.v1 import container_pb2 as pb
from hyperctl import ports
from hyperctl.errors import InvalidError


def request(container_port, host_port=0, protocol="tcp", host_ip="", host_port_end=0):
    return pb.PortRequest(
        host_ip=host_ip,
        host_port=host_port,
        host_port_end=host_port_end,
        container_port=container_port,
        protocol=protocol,
    )


@pytest.mark.parametrize(
    ("text", "requests"),
    [
        ("80", [request(80)]),
        ("8080:80", [request(80, 8080)]),
        ("53:53/UDP", [request(53, 53, "udp")]),
        ("127.0.0.1:8080:80", [request(80, 8080, host_ip="127.0.0.1")]),
        ("127.0.0.1::80", [request(80, host_ip="127.0.0.1")]),
        ("[::1]:8080:80", [request(80, 8080, host_ip="::1")]),
        ("[0::]::53/udp", [request(53, protocol="udp", host_ip="::")]),
        ("[::1]:8080-8081:80-81", [request(80, 8080, host_ip="::1"), request(81, 8081, host_ip="::1")]),
        ("8080-8081:80-81", [request(80, 8080), request(81, 8081)]),
        ("8080-8090:80", [request(80, 8080, host_port_end=8090)]),
        ("80-81", [request(80), request(81)]),
    ],
)
def test_publish_has_dockers_grammar(text, requests):
    assert ports.parse_published([text]) == requests


@pytest.mark.parametrize(
    "text",
    ["", ":", "0:80", "80:0", "80/", "80/icmp", "65536", "8080-8082:80-81", "90-80", "web:80",
     "[::1]:80", "[::g]:80:80", "[::1]80:80", "[1.2.3.4]:80:80", "::1:80:80", "1.2.3:80:80",
     "1-65535", "-1:80", "80:80:80:80", "8080:80-81x"],
)  # fmt: skip
def test_what_is_no_port_is_refused(text):
    with pytest.raises(InvalidError):
        ports.parse_published([text])


def test_expose_is_told_with_its_protocol():
    assert ports.parse_exposed(["80", "53/udp", "100-110"]) == ["80/tcp", "53/udp", "100-110/tcp"]
    for text in ("", "80:80", "x", "80/sctp"):
        with pytest.raises(InvalidError):
            ports.parse_exposed([text])


def test_what_is_taken_back_may_name_the_port_of_the_host():
    (plain, at_host) = ports.parse_unpublished(["80", "8053:53/udp"])
    assert (plain.container_port, plain.protocol, plain.host_port) == (80, "tcp", 0)
    assert (at_host.container_port, at_host.protocol, at_host.host_port) == (53, "udp", 8053)
    with pytest.raises(InvalidError, match="HOST:CONTAINER"):
        ports.parse_unpublished(["8080/udp:80"])


def published(container_port, host_port, protocol="tcp", host_ip="0.0.0.0"):
    return pb.PublishedPort(
        host_ip=host_ip, host_port=host_port, container_port=container_port, protocol=protocol
    )


def test_the_column_of_ps_joins_ports_that_follow_each_other():
    container = pb.Container(
        ports=[
            published(80, 8080),
            published(81, 8081),
            published(83, 8083),
            published(53, 5353, "udp", "127.0.0.1"),
            published(80, 8080, host_ip="::"),
        ],
        spec=pb.ContainerSpec(expose=["80/tcp", "443"]),
    )
    assert ports.render_ports(container) == (
        "0.0.0.0:8080-8081->80-81/tcp, 0.0.0.0:8083->83/tcp, [::]:8080->80/tcp, 127.0.0.1:5353->53/udp, 443"
    )


def test_inspect_tells_what_was_asked_for_and_what_it_became():
    spec = pb.ContainerSpec(ports=[request(80), request(81, 8000, host_port_end=8010)], expose=["443/tcp"])
    assert ports.port_bindings(spec.ports) == {
        "80/tcp": [{"HostIp": "", "HostPort": ""}],
        "81/tcp": [{"HostIp": "", "HostPort": "8000-8010"}],
    }
    container = pb.Container(spec=spec, ports=[published(80, 32768)])
    assert ports.port_settings(container, is_up=True) == {
        "443/tcp": None,
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}],
    }
    assert list(ports.exposed_ports(spec)) == ["443/tcp", "80/tcp", "81/tcp"]
