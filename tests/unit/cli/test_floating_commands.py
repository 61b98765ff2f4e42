# SPDX-License-Identifier: Apache-2.0
"""`hyper fip ...`"""

import grpc

from hyper.v1 import policy_pb2
from tests.unit.cli.goldens import asked


def test_addresses_are_allocated_and_listed(daemon, hyper):
    assert hyper("fip", "allocate").out == "203.0.113.1\n"
    assert hyper("fip", "allocate", "2").out == "203.0.113.1\n203.0.113.2\n"
    assert hyper("fip", "allocate", "--pick", "203.0.113.9").status == 0
    one, two, picked = asked(daemon, policy_pb2.AllocateFloatingRequest)
    assert (one.count, two.count, picked.wanted) == (1, 2, "203.0.113.9")
    for wrong in ("0", "many", "5000"):
        assert hyper("fip", "allocate", wrong).status == 2
    head, first, _ = hyper("fip", "ls").out.splitlines()
    assert head.split() == ["FLOATING", "IP", "NAME", "CONTAINER"]
    assert first.split() == ["203.0.113.1", "front", "web"]
    assert hyper("fip", "ls", "-q").out == "203.0.113.1\n203.0.113.2\n"
    assert (
        hyper("fip", "ls", "--format", "{{.Address}} {{.ID}}").out.splitlines()[0]
        == "203.0.113.1 " + "1" * 12
    )


def test_addresses_are_lent_named_and_given_back(daemon, hyper):
    assert hyper("fip", "attach", "-f", "front", "web").out == "203.0.113.1\n"
    [lent] = asked(daemon, policy_pb2.AttachFloatingRequest)
    assert (lent.floating, lent.container, lent.force) == ("front", "web", True)
    assert hyper("fip", "detach", "web").out == "203.0.113.1\n"
    for args, name in (((), ""), (("front",), "front")):
        assert hyper("fip", "name", "203.0.113.1", *args).status == 0
        assert asked(daemon, policy_pb2.NameFloatingRequest)[-1].name == name
    daemon.fail_next("ReleaseFloating", grpc.StatusCode.FAILED_PRECONDITION, "is attached to web")
    result = hyper("fip", "release", "203.0.113.1", "203.0.113.2")
    assert (result.status, result.out) == (4, "203.0.113.2\n")
