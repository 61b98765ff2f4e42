# SPDX-License-Identifier: Apache-2.0
"""BuildService: one call is one build; its requests are taken apart beside it."""

import asyncio
from collections.abc import AsyncIterator

from hyper.v1 import build_pb2 as wire
from hyper.v1 import build_pb2_grpc
from hyperd.api import image_convert as convert
from hyperd.api.status import Context, errors_as_status
from hyperd.api.uploads import MAX_DATA_BYTES, first_request, tell
from hyperd.build import MAX_MESSAGE_BYTES, Builds, Event
from hyperd.errors import InvalidError, TimeoutExpiredError
from hyperd.host.groups import first_error
from hyperd.image import Pace, paced
from hyperd.model.build import AgentMessage, BuildFailed, BuildSpec, Built, GitContext, Output, Secret
from hyperd.model.image import Credentials, LayerProgress

QUEUED_PIECES = 4
STALL_TIMEOUT_S = 180.0  # the caller reads what he packs
ANSWER_TIMEOUT_S = 120.0  # a credential helper may ask its user
AGENT_TIMEOUT_S = 600.0  # and an ssh-agent, or wait for a touch
MAX_DOCKERFILE_BYTES = 1 << 20

Requests = AsyncIterator[wire.BuildImageRequest]


class BuildServicer(build_pb2_grpc.BuildServiceServicer):
    """The stream writes to its context instead of being a generator, as in ``ContainerServicer``."""

    def __init__(self, builds: Builds) -> None:
        self._builds = builds

    async def BuildImage(self, requests: Requests, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            first = await first_request(requests, "build")
            if first.WhichOneof("kind") != "options":
                raise InvalidError("the first request of a build has no options")
            caller = _Caller(requests, context)
            async with first_error(), asyncio.TaskGroup() as tasks:
                taking = tasks.create_task(caller.take())
                done = await self._builds.build(
                    decode_options(first.options),
                    caller.context(),
                    caller.tell,
                    caller.credentials,
                    caller.ask_agent,
                )
                taking.cancel()
            await context.write(_encode_end(done))


class _Caller:
    """Its requests, each where it belongs; no more of the context is taken than the builder has room for."""

    def __init__(self, requests: Requests, context: Context) -> None:
        self._requests = requests
        self._context = context
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_PIECES)
        self._answers: dict[str, asyncio.Future[Credentials | None]] = {}
        self._agents: dict[tuple[str, int], asyncio.Future[bytes]] = {}
        self._telling = asyncio.Lock()  # gRPC takes one message at a time
        self._pace = Pace(subject="what the build tells", does="is read")

    async def take(self) -> None:
        # Not `async for`: grpc.aio iterates a request stream of ours by anext() only.
        while (request := await anext(aiter(self._requests), None)) is not None:
            match request.WhichOneof("kind"):
                case "data":
                    if len(request.data) > MAX_DATA_BYTES:
                        raise InvalidError(f"a message holds more than {MAX_DATA_BYTES} bytes")
                    await self._pieces.put(request.data)
                case "context_end":
                    await self._pieces.put(None)
                case "credentials":
                    waiting = self._answers.pop(request.credentials.reference, None)
                    if waiting is None or waiting.done():
                        raise InvalidError("these credentials were not asked for")
                    waiting.set_result(convert.decode_credentials(request.credentials))
                case "ssh_agent":
                    self._take_answer(request.ssh_agent)
                case other:
                    raise InvalidError(f"{other!r} cannot come after the first request")
        await self._pieces.put(None)

    def context(self) -> AsyncIterator[bytes]:
        """One who stops sending, or drips, does not keep the turn."""
        return paced(self._sent(), STALL_TIMEOUT_S)

    async def _sent(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if piece:
                yield piece

    async def tell(self, event: Event) -> None:
        await self._tell(_encode_event(event))

    async def _tell(self, response: wire.BuildImageResponse) -> None:
        async with self._telling:
            clock = asyncio.get_running_loop().time
            since = clock()
            await tell(self._context, response, "the build")
            self._pace.count(clock() - since, response.ByteSize())

    async def credentials(self, reference: str) -> Credentials | None:
        """What the caller has for the registry of that reference."""
        answer: asyncio.Future[Credentials | None] = asyncio.get_running_loop().create_future()
        self._answers[reference] = answer
        await self._tell(wire.BuildImageResponse(credentials_wanted=reference))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await answer
        except TimeoutError as error:
            raise TimeoutExpiredError(
                f"the caller gave no credentials in {ANSWER_TIMEOUT_S:g} s", subject=reference
            ) from error

    async def ask_agent(self, message: AgentMessage) -> bytes:
        """b"" when the caller's agent has no answer: it is gone, or nobody has confirmed in time."""
        asked = wire.SshAgentMessage(id=message.id, connection=message.connection, message=message.message)
        response = wire.BuildImageResponse(ssh_agent=asked)
        if not message.message:
            await self._tell(response)
            return b""
        key = (message.id, message.connection)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._agents[key] = answer
        try:
            await self._tell(response)
            async with asyncio.timeout(AGENT_TIMEOUT_S):
                return await answer
        except TimeoutError:
            return b""
        finally:
            del self._agents[key]

    def _take_answer(self, answer: wire.SshAgentMessage) -> None:
        if len(answer.message) > MAX_MESSAGE_BYTES:
            raise InvalidError(f"an ssh-agent's answer holds more than {MAX_MESSAGE_BYTES} bytes")
        waiting = self._agents.get((answer.id, answer.connection))
        if waiting is not None and not waiting.done():  # else it comes too late
            waiting.set_result(answer.message)


def decode_options(options: wire.BuildOptions) -> BuildSpec:
    """Raises InvalidError."""
    if len(options.dockerfile) > MAX_DOCKERFILE_BYTES:
        raise InvalidError(f"the Dockerfile is larger than {MAX_DOCKERFILE_BYTES >> 20} MiB")
    git = options.git
    return BuildSpec(
        tags=tuple(options.tags),
        dockerfile=options.dockerfile,
        dockerfile_path=options.dockerfile_path or "Dockerfile",
        git=GitContext(git.url, git.ref, git.directory) if options.HasField("git") else None,
        build_args=tuple(options.build_args),
        labels=tuple(options.labels),
        target=options.target,
        no_cache=options.no_cache,
        pull=options.pull,
        platform=convert.decode_platform(options.platform),
        network=options.network,
        extra_hosts=tuple(options.extra_hosts),
        secrets=tuple(Secret(secret.id, secret.content) for secret in options.secrets),
        cpus=options.cpus,
        memory_bytes=options.memory_bytes,
        shm_size_bytes=options.shm_size_bytes,
        apply_ignore_file=options.apply_ignore_file,
        ssh=tuple(options.ssh),
    )


def _encode_event(event: Event) -> wire.BuildImageResponse:
    if isinstance(event, Output):
        return wire.BuildImageResponse(output=event.data)
    if isinstance(event, LayerProgress):
        return wire.BuildImageResponse(layer=convert.encode_progress(event))
    return wire.BuildImageResponse(notice=event.text)


def _encode_end(end: Built | BuildFailed) -> wire.BuildImageResponse:
    if isinstance(end, BuildFailed):
        return wire.BuildImageResponse(failure=wire.BuildFailure(code=end.code))
    return wire.BuildImageResponse(image=wire.BuiltImage(id=end.image.image_id, tags=end.tags))
