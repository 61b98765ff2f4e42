# SPDX-License-Identifier: Apache-2.0
"""TemplateService: decode, delegate, encode."""

from collections.abc import Awaitable, Callable
from time import monotonic

from hyper.v1 import snapshot_pb2 as wire
from hyper.v1 import snapshot_pb2_grpc
from hyperd.api import convert
from hyperd.api.status import Context, errors_as_status
from hyperd.model.snapshot import Snapshot
from hyperd.sandbox import Templates


class TemplateServicer(snapshot_pb2_grpc.TemplateServiceServicer):
    def __init__(self, templates: Templates, build: Callable[[int, int], Awaitable[list[Snapshot]]]) -> None:
        """``build``: those of one size, given vCPUs and MiB of memory; 0 is the default's."""
        self._templates = templates
        self._build = build

    async def ListTemplates(
        self, request: wire.ListTemplatesRequest, context: Context
    ) -> wire.ListTemplatesResponse:
        async with errors_as_status(context):
            return wire.ListTemplatesResponse(
                templates=[convert.encode_snapshot(snapshot) for snapshot in self._templates.list()]
            )

    async def BuildTemplate(
        self, request: wire.BuildTemplateRequest, context: Context
    ) -> wire.BuildTemplateResponse:
        async with errors_as_status(context):
            began = monotonic()
            built = await self._build(request.vcpus, request.memory_mib)
            return wire.BuildTemplateResponse(
                templates=[convert.encode_snapshot(snapshot) for snapshot in built],
                duration_ms=round((monotonic() - began) * 1000),
            )

    async def RemoveTemplate(
        self, request: wire.RemoveTemplateRequest, context: Context
    ) -> wire.RemoveTemplateResponse:
        async with errors_as_status(context):
            return wire.RemoveTemplateResponse(template_id=await self._templates.remove(request.template))
