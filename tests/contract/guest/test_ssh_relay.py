# SPDX-License-Identifier: Apache-2.0
"""The builder's ssh-relay, and the agent for files of keys, with openssh's own programs at both ends."""

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperctl.build_ssh import MAX_MESSAGE_BYTES
from hyperctl.errors import CliError
from hyperctl.key_agent import agent_of
from hyperd.build.ssh import Frames, frame
from hyperd.model.build import AgentMessage
from tests.harness import ROOT, wait_until

SCRIPT = ROOT / "guestbuilder/root/usr/libexec/hyper/ssh-relay"
IDS = ("default", "other")
FAILURE = b"\x05"


class Relay:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.child = subprocess.Popen(
            ["perl", str(SCRIPT), str(place), *IDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._frames = Frames(IDS)
        self._heard: list[AgentMessage] = []
        assert self.hear() == AgentMessage("default", 0)

    def hear(self) -> AgentMessage:
        assert self.child.stdout is not None
        while not self._heard:
            data = self.child.stdout.read(65536)
            assert data, "it ended"
            self._heard += self._frames.take(data)
        return self._heard.pop(0)

    def answer(self, to: AgentMessage, message: bytes) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(frame(IDS.index(to.id), to.connection, message))

    def connect(self, agent_id: str = "default") -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(30)
        connection.connect(str(self.place / agent_id))
        return connection


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(tmp_path / "sockets")
    yield relay
    assert relay.child.stdin is not None
    relay.child.stdin.close()
    assert relay.child.wait(30) == 0
    assert relay.child.stdout is not None
    relay.child.stdout.close()


def packed(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


def test_requests_of_several_connections_have_each_its_answer(relay: Relay):
    with relay.connect() as one, relay.connect("other") as two:
        one.sendall(packed(b"first")[:6])
        two.sendall(packed(b"second"))
        second = relay.hear()
        assert (second.id, second.message) == ("other", b"second")
        one.sendall(packed(b"first")[6:] + packed(b"third"))
        first = relay.hear()
        assert (first.id, first.message) == ("default", b"first")
        relay.answer(second, b"to the second")
        assert two.recv(100) == packed(b"to the second")
        relay.answer(first, b"to the first")
        assert one.recv(100) == packed(b"to the first")
        third = relay.hear()  # not before the first one has its answer
        assert (third.connection, third.message) == (first.connection, b"third")
    relay.answer(third, b"nobody waits for it")
    ended = {relay.hear(), relay.hear()}
    assert ended == {AgentMessage("default", first.connection), AgentMessage("other", second.connection)}


def test_a_message_of_the_greatest_size_passes_and_a_larger_one_ends_its_connection(relay: Relay):
    message = os.urandom(MAX_MESSAGE_BYTES)
    with relay.connect() as one:
        one.sendall(packed(message))
        asked = relay.hear()
        assert asked.message == message
        relay.answer(asked, message)
        with one.makefile("rb") as stream:
            assert stream.read(4 + len(message)) == packed(message)
        one.sendall(struct.pack(">I", MAX_MESSAGE_BYTES + 1))
        assert relay.hear() == AgentMessage("default", asked.connection)
        assert one.recv(1) == b""


def test_an_agent_without_an_answer_is_the_end_of_the_connection(relay: Relay):
    with relay.connect() as one:
        one.sendall(packed(b"x"))
        relay.answer(relay.hear(), b"")
        assert one.recv(1) == b""


def test_its_sockets_are_for_its_user_alone(relay: Relay):
    assert relay.place.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", path], check=True)
    return path


def test_ssh_add_lists_what_an_agent_behind_it_has(relay: Relay, key: Path):
    with agent_of([str(key)], "--ssh x") as place:
        asking = subprocess.Popen(
            ["ssh-add", "-l"],
            env={**os.environ, "SSH_AUTH_SOCK": str(relay.place / "default")},
            stdout=subprocess.PIPE,
            text=True,
        )
        with asking, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.connect(place)
            while asked := (message := relay.hear()).message:
                agent.sendall(packed(asked))
                with agent.makefile("rb") as stream:
                    relay.answer(message, stream.read(struct.unpack(">I", stream.read(4))[0]))
            assert asking.stdout is not None
            assert "mine (ED25519)" in asking.stdout.read()
    wait_until(lambda: not Path(place).exists(), "the agent's socket goes")


def has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_an_agent_for_keys_goes_with_its_socket(key: Path):
    with agent_of([str(key)], "--ssh x") as place:
        kept = socket.socket(socket.AF_UNIX)
        kept.settimeout(30)
        kept.connect(place)
    with kept:
        assert has_ended(kept)


def test_a_key_that_is_none_is_told(tmp_path: Path):
    (tmp_path / "none").write_text("no key")
    with (
        pytest.raises(CliError, match="ssh-add does not take it"),
        agent_of([str(tmp_path / "none")], "--ssh x"),
    ):
        pass
