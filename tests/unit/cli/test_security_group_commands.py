# SPDX-License-Identifier: Apache-2.0
"""`hyper sg ...`, `--security-group` and the rates."""

import json

import grpc
import pytest
import yaml

from hyper.v1 import container_pb2 as pb
from hyper.v1 import policy_pb2
from hyperd.network.policy.group_document import parse_security_group
from tests.unit.cli.goldens import asked

DOCUMENT = "rules: [{direction: ingress, protocol: tcp}]\n"


@pytest.mark.parametrize(
    ("verb", "kind"),
    [("create", policy_pb2.CreateSecurityGroupRequest), ("update", policy_pb2.UpdateSecurityGroupRequest)],
)
def test_a_group_is_made_and_changed_by_a_file(daemon, hyper, tmp_path, verb, kind):
    file = tmp_path / "web.yaml"
    file.write_text(DOCUMENT)
    assert hyper("sg", verb, "-f", str(file), "db").out == "db\n"
    assert hyper("sg", verb, "--file", str(file)).out == "web\n"
    first, second = asked(daemon, kind)
    assert (first.name, first.document, second.name) == ("db", DOCUMENT, "")
    absent = hyper("sg", verb, "-f", str(tmp_path / "nothing"), "db")
    assert (absent.status, "allow-all" in absent.err) == (2, False), "that is what --egress takes"


def test_a_group_may_begin_without_rules_but_not_without_a_name(daemon, hyper):
    assert hyper("sg", "create", "db").out == "db\n"
    (request,) = asked(daemon, policy_pb2.CreateSecurityGroupRequest)
    made = parse_security_group(request.document, request.name)
    assert (made.name, made.rules) == ("db", ())
    assert hyper("sg", "create").status == 2
    assert hyper("sg", "update", "db").status == 2


def test_groups_are_listed_and_shown(daemon, hyper):
    head, first, _ = hyper("sg", "ls").out.splitlines()
    assert head.split() == ["NAME", "DESCRIPTION", "INGRESS", "EGRESS", "CONTAINERS"]
    assert first.split() == ["db", "of", "tests", "1", "1", "1"]
    assert hyper("sg", "ls", "-q").out == "db\nweb\n"
    [document] = json.loads(hyper("sg", "inspect", "web").out)
    assert document["rules"] == [
        {
            "direction": "ingress",
            "protocol": "tcp",
            "port_range_min": 22,
            "port_range_max": 23,
            "remote_ip_prefix": "0.0.0.0/0",
        },
        {"direction": "egress", "protocol": "", "remote_group_name": "db"},
    ]
    shown = hyper("sg", "inspect", "-o", "yaml", "web").out
    assert yaml.safe_load(shown) == document, "as it is read"
    assert hyper("sg", "inspect", "-o", "xml", "web").status == 2
    assert hyper("sg", "inspect", "--format", "{{.name}}", "web").out == "web\n"


def test_groups_are_given_taken_and_removed(daemon, hyper):
    assert hyper("sg", "attach", "site", "web", "lb").out == "db\nweb\nlb\n"
    assert hyper("sg", "detach", "site", "web").out == "db\n"
    given, taken = asked(daemon, policy_pb2.ChangeSecurityGroupsRequest)
    assert (list(given.add), list(taken.remove)) == (["web", "lb"], ["web"])
    daemon.fail_next("RemoveSecurityGroup", grpc.StatusCode.FAILED_PRECONDITION, "is in use by site")
    result = hyper("sg", "rm", "web", "db")
    assert (result.status, result.out) == (4, "db\n")


def test_a_container_is_made_with_groups_and_rates(daemon, hyper):
    flags = (
        "--security-group",
        "web",
        "--sg",
        "db",
        "--network-rate-in",
        "10m",
        "--network-rate-out",
        "500k/s",
    )
    assert hyper("create", *flags, "alpine").status == 0
    spec = asked(daemon, pb.CreateContainerRequest)[0].spec
    assert list(spec.security_groups) == ["web", "db"]
    assert (spec.network_rate_in, spec.network_rate_out) == (10 << 20, 500 << 10)
    assert hyper("create", "--network-rate-in", "fast", "alpine").status == 2
