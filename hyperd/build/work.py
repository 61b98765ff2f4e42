# SPDX-License-Identifier: Apache-2.0
"""What is done in a builder, from its first program to the image."""

from collections.abc import AsyncIterator

from hyperd.build import dockerfile, plan, result, ssh
from hyperd.build.address import address_of
from hyperd.build.bases import AskCredentials, Bases, Respond
from hyperd.build.builder import TRANSFER_TIMEOUT_S, Builder
from hyperd.errors import NotFoundError, UnavailableError
from hyperd.host.workers import Workers
from hyperd.image import ImageStore
from hyperd.model.build import BuildFailed, BuildSpec, Built, Output
from hyperd.model.image import Platform, PullNotice

_CHUNK_BYTES = 1 << 20
_SCRIPTS = "/usr/libexec/hyper"
_NOT_THERE = 3  # of git-context
_KEEP = 'umask 077; mkdir -p "${1%/*}" && cat >"$1"'


class Work:
    def __init__(
        self,
        spec: BuildSpec,
        builder: Builder,
        images: ImageStore,
        workers: Workers,
        platform: Platform,
        respond: Respond,
    ) -> None:
        self._spec = spec
        self._builder = builder
        self._images = images
        self._workers = workers
        self._platform = platform
        self._respond = respond

    async def run(
        self, context: AsyncIterator[bytes], ask_credentials: AskCredentials, ask_agent: ssh.AskAgent
    ) -> Built | BuildFailed:
        spec, builder = self._spec, self._builder
        if said := await builder.ask([f"{_SCRIPTS}/prepare"]):
            await self._respond(PullNotice(said))
        await self._bring_context(context)
        wanted = await self._workers.call(  # a stranger's text, of up to 1 MiB
            dockerfile.base_images,
            await self._bring_dockerfile(),
            build_args=plan.args_of(spec.build_args),
            target=spec.target,
            platform_args=plan.platform_args(self._platform),
        )
        bases = Bases(self._images, self._platform, self._respond, ask_credentials)
        contexts = await bases.hand_over(await bases.find(wanted, pull=spec.pull), builder)
        for secret in spec.secrets:
            await self._keep(f"{plan.SECRETS}/{secret.id}", secret.content)
        async with ssh.relayed(builder, spec.ssh, ask_agent):
            code = await builder.run(
                plan.engine_command(spec, contexts), hear=self._hear, timeout_s=plan.BUILD_TIMEOUT_S
            )
        return BuildFailed(code) if code else await result.take(builder, self._images, spec.tags)

    async def _hear(self, data: bytes) -> None:
        await self._respond(Output(data))

    async def _bring_context(self, context: AsyncIterator[bytes]) -> None:
        builder, git = self._builder, self._spec.git
        await builder.ask(["mkdir", "-p", plan.CONTEXT])
        if git is None:
            await builder.write(plan.CONTEXT, context)
            return
        address = address_of(git)
        if address.login:
            await self._keep(plan.LOGIN, address.login)
        fetch = [
            f"{_SCRIPTS}/git-context",
            *(address.url, git.ref, plan.CONTEXT, plan.inside(git.directory)),
            *([plan.LOGIN] if address.login else []),
        ]
        code, said = await builder.attempt(fetch, timeout_s=TRANSFER_TIMEOUT_S)
        if code == _NOT_THERE:
            raise NotFoundError("cannot be built", subject=address.url, evidence=address.hide(said))
        if code:
            raise UnavailableError("cannot be fetched", subject=address.url, evidence=address.hide(said))

    async def _bring_dockerfile(self) -> bytes:
        spec = self._spec
        if spec.dockerfile:
            await self._keep(plan.DOCKERFILE, spec.dockerfile)
            return spec.dockerfile
        path = plan.inside(spec.dockerfile_path)
        code, said = await self._builder.attempt(
            ["cp", "-L", "--", f"{plan.context_of(spec)}/{path}", plan.DOCKERFILE]
        )
        if code:
            raise NotFoundError("failed to read dockerfile", subject=path, evidence=said)
        return await self._builder.read(plan.DOCKERFILE, dockerfile.MAX_BYTES)

    async def _keep(self, place: str, content: bytes) -> None:
        """In a file that is root's alone; never in an argument."""
        await self._builder.ask(["sh", "-c", _KEEP, "sh", place], stdin=_once(content))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), _CHUNK_BYTES):
        yield data[at : at + _CHUNK_BYTES]
