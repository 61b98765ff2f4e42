# SPDX-License-Identifier: Apache-2.0
"""`hyper build --ssh`: which agent is meant, what may be asked of it, and what is answered without it."""

import queue
from pathlib import Path

import pytest

from hyper.v1 import build_pb2 as pb
from hyperctl.build_ssh import FAILURE, MAX_CONNECTIONS, Agents, Source, read_sources
from hyperctl.errors import CliError
from tests.fakes.ssh import FakeSshAgent, ssh_agent

LIST, SIGN, ADD = b"\x0b", b"\x0dkey", b"\x11key"
DEADLINE_S = 30


@pytest.fixture
def agent(tmp_path):
    with ssh_agent(tmp_path / "agent") as agent:
        yield agent


class Line:
    """Requests, and the answers that come."""

    def __init__(self, agent: FakeSshAgent) -> None:
        self._answers: queue.SimpleQueue[pb.SshAgentMessage] = queue.SimpleQueue()
        self.agents = Agents({"default": str(agent.place)}, self._answers.put)

    def ask(self, message: bytes, connection: int = 1, agent_id: str = "default") -> bytes:
        self.send(message, connection, agent_id)
        answer = self._answers.get(timeout=DEADLINE_S)
        assert (answer.id, answer.connection) == (agent_id, connection)
        return answer.message

    def send(self, message: bytes, connection: int = 1, agent_id: str = "default") -> None:
        self.agents.take(pb.SshAgentMessage(id=agent_id, connection=connection, message=message))


@pytest.fixture
def line(agent):
    line = Line(agent)
    yield line
    line.agents.close()


def test_keys_are_listed_and_things_signed_over_one_connection_each(line, agent):
    assert [line.ask(LIST), line.ask(SIGN), line.ask(SIGN, 2)] == [LIST, SIGN, SIGN]
    assert (agent.asked, agent.connections) == ([LIST, SIGN, SIGN], 2)


@pytest.mark.parametrize("message", [ADD, b"\x12key", b"\x13", b"\x16", b"\x1bsession-bind@openssh.com"])
def test_whatever_else_is_refused_without_the_agent(line, agent, message):
    assert line.ask(message) == FAILURE
    assert not agent.asked


def test_a_connection_that_ends_ends_that_to_the_agent_and_numbers_are_free_again(line, agent):
    for number in range(MAX_CONNECTIONS):
        assert line.ask(LIST, number) == LIST
    assert line.ask(LIST, MAX_CONNECTIONS) == b""
    line.send(b"", 0)
    assert line.ask(LIST, MAX_CONNECTIONS) == LIST


def test_an_agent_that_goes_is_the_end_of_the_connection(line, agent):
    assert line.ask(LIST) == LIST
    agent.close()
    assert line.ask(LIST, 2) == b""
    assert line.ask(LIST, 3, "nobody") == b""


def test_the_end_of_the_build_does_not_wait_for_an_agent_that_is_silent(line, agent):
    agent.silent = True
    line.send(SIGN)
    line.agents.close()
    assert line._answers.get(timeout=DEADLINE_S).message == b""


def test_where_an_agent_is(tmp_path, agent, monkeypatch):
    (tmp_path / "key").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    environ = {"SSH_AUTH_SOCK": "/run/agent"}
    assert read_sources(["default", f"a={agent.place}", "b=~/key,~/key"], environ) == [
        Source("default", socket="/run/agent"),
        Source("a", socket=str(agent.place)),
        Source("b", keys=(f"{tmp_path}/key",) * 2),
    ]


@pytest.mark.parametrize(
    ("texts", "status", "said"),
    [
        (["default"], 2, "SSH_AUTH_SOCK is not set"),
        ([""], 2, "is not default or ID"),
        (["=x"], 2, "is not default or ID"),
        (["a=/dev/null,"], 2, "is not default or ID"),
        (["a=/no/such"], 3, "no such file"),
        (["a=/dev"], 2, "neither one socket of an agent nor files of keys"),
        (["a={key}", "a={key}"], 2, "two of one id"),
    ],
)
def test_an_agent_that_cannot_be_meant_is_refused(tmp_path: Path, texts, status, said):
    key = tmp_path / "key"
    key.write_text("")
    with pytest.raises(CliError, match=said) as caught:
        read_sources([text.format(key=key) for text in texts], {})
    assert caught.value.exit_status == status


def test_a_build_is_told_the_ids_and_asks_by_them(daemon, hyper, tmp_path, agent, monkeypatch):
    (tmp_path / "Dockerfile").write_text("FROM alpine\n")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent.place))
    daemon.engine.agent_asks = (pb.SshAgentMessage(id="default", connection=1, message=SIGN),)
    result = hyper("build", "--ssh", "default", str(tmp_path))
    assert result.status == 0, result.err
    assert list(daemon.engine.options.ssh) == ["default"]
    assert daemon.engine.agent_answers == [pb.SshAgentMessage(id="default", connection=1, message=SIGN)]


def test_without_an_agent_there_is_no_build(daemon, hyper, tmp_path, monkeypatch):
    (tmp_path / "Dockerfile").write_text("FROM alpine\n")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
    result = hyper("build", "--ssh", "default", str(tmp_path))
    assert (result.status, daemon.engine.options) == (1, None)
    assert "no agent answers: No such file or directory" in result.err
