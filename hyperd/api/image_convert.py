# SPDX-License-Identifier: Apache-2.0
"""Images between the wire and the model."""

from hyper.v1 import build_pb2 as build_wire
from hyper.v1 import image_pb2 as wire
from hyperd.api.convert import encode_time
from hyperd.errors import InvalidError
from hyperd.image import parse_platform
from hyperd.image.base import LoadEvent, PullEvent, PushEvent
from hyperd.model.image import (
    Admission,
    Credentials,
    Image,
    LayerPhase,
    LayerProgress,
    LoadedImage,
    NewImage,
    Platform,
    PullNotice,
    PushedTag,
    PushPhase,
)

_PHASES = {phase: wire.LayerPhase.Value(f"LAYER_PHASE_{phase.name}") for phase in LayerPhase}
_PUSH_PHASES = {phase: wire.PushPhase.Value(f"PUSH_PHASE_{phase.name}") for phase in PushPhase}
MAX_SECRET_BYTES = 64 * 1024  # tokens are some kilobytes
MAX_CHANGES = 1000


def decode_platform(text: str) -> Platform | None:
    """As Docker writes them; "" is None. Raises InvalidError."""
    return parse_platform(text) if text else None


def decode_credentials(
    request: wire.PullImageRequest
    | wire.PushImageRequest
    | wire.InspectManifestRequest
    | wire.SearchImagesRequest
    | build_wire.BuildCredentials,
) -> Credentials | None:
    """None: those in the daemon's own files. Raises InvalidError; no message has any of it."""
    if not request.HasField("credentials"):
        return None
    given = request.credentials
    for text in (given.username, given.password, given.identity_token):
        if len(text) > MAX_SECRET_BYTES:
            raise InvalidError(f"the credentials are longer than {MAX_SECRET_BYTES} characters")
    return Credentials(given.username, given.password, given.identity_token)


def decode_import(options: wire.ImportOptions) -> NewImage:
    """Raises InvalidError."""
    if len(options.changes) > MAX_CHANGES:
        raise InvalidError(f"more than {MAX_CHANGES} changes")
    return NewImage(
        reference=options.reference,
        message=options.message,
        changes=tuple(options.changes),
        platform=decode_platform(options.platform),
    )


def encode_image(image: Image) -> wire.Image:
    config = image.config
    return wire.Image(
        id=image.image_id,
        tags=image.tags,
        digests=image.digests,
        created_at=encode_time(image.created_at),
        size_bytes=image.size_bytes,
        stored_bytes=image.stored_bytes,
        architecture=image.platform.architecture,
        os=image.platform.os,
        variant=image.platform.variant,
        config=wire.ImageConfig(
            env=config.env,
            entrypoint=config.entrypoint,
            cmd=config.cmd,
            working_directory=config.working_directory,
            user=config.user,
            labels=config.labels,
            exposed_ports=config.exposed_ports,
            volumes=config.volumes,
            stop_signal=config.stop_signal,
            healthcheck_json=config.healthcheck_json,
        ),
        diff_ids=image.diff_ids,
        manifest_digest=image.manifest_digest,
        author=image.author,
        history=[
            wire.HistoryEntry(
                created_at=encode_time(entry.created_at),
                created_by=entry.created_by,
                comment=entry.comment,
                empty_layer=entry.empty_layer,
            )
            for entry in image.history
        ],
        layer_bytes=image.layer_bytes,
        admissions=[_encode_admission(admission) for admission in image.admissions],
    )


def _encode_admission(admission: Admission) -> wire.Admission:
    return wire.Admission(
        reference=admission.reference,
        manifest_digest=admission.manifest_digest,
        scope=admission.scope,
        requirements=[
            wire.Admission.Requirement(kind=each.kind, keys=each.keys, identity=each.identity)
            for each in admission.requirements
        ],
        admitted_at=encode_time(admission.admitted_at),
    )


def encode_progress(progress: LayerProgress) -> wire.LayerProgress:
    return wire.LayerProgress(
        digest=progress.digest,
        phase=_PHASES[progress.phase],
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
    )


def encode_pull(event: PullEvent) -> wire.PullImageResponse:
    if isinstance(event, Image):
        return wire.PullImageResponse(image=encode_image(event))
    if isinstance(event, LayerProgress):
        return wire.PullImageResponse(layer=encode_progress(event))
    return wire.PullImageResponse(notice=event.text)


def encode_push(event: PushEvent) -> wire.PushImageResponse:
    if isinstance(event, PushedTag):
        return wire.PushImageResponse(
            pushed=wire.PushedTag(
                reference=event.reference,
                manifest_digest=event.manifest_digest,
                manifest_bytes=event.manifest_bytes,
            )
        )
    if isinstance(event, PullNotice):
        return wire.PushImageResponse(notice=event.text)
    return wire.PushImageResponse(
        blob=wire.PushProgress(
            digest=event.digest,
            phase=_PUSH_PHASES[event.phase],
            done_bytes=event.done_bytes,
            total_bytes=event.total_bytes,
        )
    )


def encode_load(event: LoadEvent) -> wire.LoadImagesResponse:
    if isinstance(event, LoadedImage):
        return wire.LoadImagesResponse(
            image=wire.LoadedImage(image=encode_image(event.image), tags=event.tags)
        )
    if isinstance(event, LayerProgress):
        return wire.LoadImagesResponse(layer=encode_progress(event))
    return wire.LoadImagesResponse(notice=event.text)
