# SPDX-License-Identifier: Apache-2.0
"""A network that cannot be prepared is told, and stops nothing that does not need it."""

import logging

import pytest

from hyperd.daemon import prepare_network
from hyperd.doctor import network_check
from hyperd.errors import UnavailableError, WrongStateError
from hyperd.model.host import CheckLevel
from tests.fakes.network import FakeNetwork


async def test_a_network_that_cannot_be_prepared_is_told_by_log_and_doctor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = FakeNetwork()
    network.fail_next_prepare = UnavailableError(
        "the host has a route to 10.0.0.0/8 through tun0", subject="10.213.0.0/16", hint="another subnet"
    )
    with caplog.at_level(logging.ERROR):
        await prepare_network(network)
    assert any("tun0" in vars(record).get("error", "") for record in caplog.records)
    check = network_check(network)
    assert (check.level, check.advice) == (CheckLevel.FAILED, "another subnet")
    assert "tun0" in check.finding
    await prepare_network(network)
    assert network_check(network).level is CheckLevel.OK


async def test_a_bridge_that_another_hyperd_has_is_no_network_to_go_without() -> None:
    network = FakeNetwork()
    network.fail_next_prepare = WrongStateError("in use by another process, pid 1", subject="bridge hyper0")
    with pytest.raises(WrongStateError, match="in use"):
        await prepare_network(network)
