# SPDX-License-Identifier: Apache-2.0
"""Builds of the hyperd without machines: it keeps what it was sent, and says what its script says."""
# ruff: noqa: N802 - the methods have the names of the contract

from dataclasses import dataclass, field

from hyper.v1 import build_pb2 as pb
from hyper.v1 import build_pb2_grpc
from tests.fakes.daemon_state import FakeDaemon, digest


@dataclass
class FakeEngine:
    """``wanted``: images whose credentials it asks for. ``failure``: the status that a build ends with."""

    options: pb.BuildOptions | None = None
    context: bytes = b""
    output: bytes = b"STEP 1/1: FROM alpine\n"
    repeats: int = 1
    taken: int = 0  # of its output, by the caller
    wanted: tuple[str, ...] = ()
    answers: dict[str, pb.BuildCredentials] = field(default_factory=dict)
    failure: int = 0
    agent_asks: tuple[pb.SshAgentMessage, ...] = ()
    agent_answers: list[pb.SshAgentMessage] = field(default_factory=list)


class FakeBuilds(build_pb2_grpc.BuildServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def BuildImage(self, requests, context):
        engine = self._daemon.engine
        first = await anext(aiter(requests))
        await self._daemon.check(first, context)
        engine.options, engine.context = first.options, b""
        while not first.options.HasField("git"):
            request = await anext(aiter(requests))
            if request.WhichOneof("kind") == "context_end":
                break
            engine.context += request.data
        for reference in engine.wanted:
            yield pb.BuildImageResponse(credentials_wanted=reference)
            if first.options.HasField("git") and not engine.answers:
                await anext(aiter(requests))  # the end of a context that was not wanted
            answer = await anext(aiter(requests))
            engine.answers[reference] = answer.credentials
        for message in engine.agent_asks:
            yield pb.BuildImageResponse(ssh_agent=message)
            engine.agent_answers.append((await anext(aiter(requests))).ssh_agent)
        for _ in range(engine.repeats):
            yield pb.BuildImageResponse(output=engine.output)
            engine.taken += 1
        if engine.failure:
            yield pb.BuildImageResponse(failure=pb.BuildFailure(code=engine.failure))
            return
        tags = [f"docker.io/library/{tag}" for tag in first.options.tags]
        yield pb.BuildImageResponse(image=pb.BuiltImage(id=digest("built"), tags=tags))
