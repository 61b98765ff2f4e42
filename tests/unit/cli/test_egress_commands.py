# SPDX-License-Identifier: Apache-2.0
"""`hyper egress ...` and `--egress`."""

import io
import json

import grpc
import pytest

from hyper.v1 import container_pb2 as pb
from hyper.v1 import policy_pb2
from tests.unit.cli.goldens import asked

DOCUMENT = "allow: [{domain: pypi.org, ports: 443}]\n"


def test_a_file_goes_to_the_daemon_as_it_is_and_a_word_as_a_word(daemon, hyper, tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(DOCUMENT)
    for given, meant in ((str(file), DOCUMENT), ("none", "none"), ("allow-all", "allow-all")):
        assert hyper("create", "--egress", given, "alpine").status == 0
        assert asked(daemon, pb.CreateContainerRequest)[-1].spec.egress == meant
        assert hyper("egress", "set", "job", given).out == "job\n"
        assert asked(daemon, policy_pb2.SetEgressRequest)[-1].policy == meant


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), (b"", "is empty"), (b"\xff", "not UTF-8"), (b"#" * 300_000, "larger than")],
)
def test_a_file_that_is_none_is_refused(daemon, hyper, tmp_path, content, says):
    file = tmp_path / "policy.yaml"
    if content is not None:
        file.write_bytes(content)
    result = hyper("egress", "set", "job", str(file))
    assert (result.status, says in result.err) == (2, True), result.err
    assert not asked(daemon, policy_pb2.SetEgressRequest)


def test_a_policy_may_come_through_a_pipe(daemon, hyper, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(DOCUMENT.encode())))
    assert hyper("egress", "set", "job", "-").status == 0
    assert asked(daemon, policy_pb2.SetEgressRequest)[0].policy == DOCUMENT


def test_what_was_tried_is_listed(daemon, hyper):
    result = hyper("egress", "report", "job")
    assert result.status == 0
    head, first, second = result.out.splitlines()
    assert head.split() == ["DESTINATION", "PORT", "PROTOCOL", "NAME", "COUNT", "FIRST", "LAST"]
    assert first.split()[:5] == ["198.51.100.2", "22", "tcp", "bad.example", "3"]
    assert second.split()[1:3] == ["dns", "1"]
    assert "latest alone" in result.err
    row = json.loads(hyper("egress", "report", "--format", "json", "job").out.splitlines()[0])
    assert (row["Destination"], row["Port"], row["Count"]) == ("198.51.100.2", "22", "3")


def test_policies_are_shown(daemon, hyper):
    [document] = json.loads(hyper("egress", "inspect", "job").out)
    assert document == {"Id": "1" * 64, "Name": "job", "Egress": "none"}
    assert hyper("egress", "inspect", "-f", "{{.Egress}}", "job").out == "none\n"


def test_a_report_of_nobody_is_not_found(daemon, hyper):
    daemon.fail_next("ReportEgress", grpc.StatusCode.NOT_FOUND, "had no egress policy")
    assert hyper("egress", "report", "nobody").status == 3
