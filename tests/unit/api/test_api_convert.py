# SPDX-License-Identifier: Apache-2.0
"""What lies in the store is shown, whatever it says: an imported manifest comes from anywhere."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl.tcmsg.common import get_rate_parameters

from hyper.v1 import container_pb2
from hyperd.api.convert import decode_spec, encode_snapshot
from hyperd.errors import InvalidError
from hyperd.model.policy import GREATEST_RATE, LEAST_RATE
from hyperd.model.snapshot import Manifest, Snapshot, SnapshotId, SnapshotKind
from tests.saved import COMPATIBILITY

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MANIFEST = Manifest(SnapshotId("a" * 64), "kept", SnapshotKind.SANDBOX, NOW, COMPATIBILITY, ())


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        ("0", 0),
        ("412", 412),
        (str(2**32 - 1), 2**32 - 1),
        (str(2**32), 0),
        ("9" * 5000, 0),
        ("-1", 0),
        ("x", 0),
        ("", 0),
        ("\u0663", 0),
        ("1e3", 0),
    ],
)
def test_a_kept_number_never_keeps_a_snapshot_from_being_shown(kept, shown):
    manifest = replace(MANIFEST, source={"pause_ms": kept})
    assert encode_snapshot(Snapshot(manifest, Path("/"), 0, NOW)).pause_ms == shown


@pytest.mark.parametrize("rate", [1, LEAST_RATE - 1, GREATEST_RATE + 1, 99999 << 40])
def test_a_rate_that_the_kernel_cannot_count_is_refused(rate):
    for name in ("network_rate_in", "network_rate_out"):
        message = container_pb2.ContainerSpec(image="alpine", **{name: rate})
        with pytest.raises(InvalidError, match="from 1k to 2g") as raised:
            decode_spec(message)
        assert raised.value.subject == f"--{name.replace('_', '-')}"


@pytest.mark.parametrize("rate", [0, LEAST_RATE, GREATEST_RATE])
def test_a_rate_is_taken_up_to_both_ends(rate):
    spec = decode_spec(
        container_pb2.ContainerSpec(image="alpine", network_rate_in=rate, network_rate_out=rate)
    )
    assert (spec.network_rate_in, spec.network_rate_out) == (rate, rate)
    # What tc (pyroute2) is given: 32 bits each. The bursts are those of wire.py and rules.py.
    if rate:
        shaped = get_rate_parameters(
            {"rate": str(rate * 8), "burst": max(16 << 10, rate // 50), "latency": "400ms"}
        )
        assert all(0 <= shaped[name] < 1 << 32 for name in ("rate", "buffer", "limit"))
        assert rate // 8 < 1 << 32


def test_a_snapshot_that_says_nothing_of_its_source_is_shown():
    assert encode_snapshot(Snapshot(MANIFEST, Path("/"), 0, NOW)).pause_ms == 0
