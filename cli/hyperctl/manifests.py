# SPDX-License-Identifier: Apache-2.0
"""Manifests of a registry as `docker manifest inspect` shows them."""

import base64
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from hyper.v1 import image_pb2 as pb
from hyperctl.errors import CliError
from hyperctl.names import split_reference
from hyperctl.render import printable

MAX_LISTED = 100
FORMS = {
    "application/vnd.oci.image.manifest.v1+json": "OCIManifest",
    "application/vnd.docker.distribution.manifest.v2+json": "SchemaV2Manifest",
}

Fetch = Callable[[str], Awaitable[pb.InspectManifestResponse]]


async def describe(fetch: Fetch, reference: str, *, verbose: bool) -> str:
    """The manifest as it is, with tabs; ``verbose``: a descriptor with it, and for a list each that it lists."""
    answer = await fetch(reference)
    manifest = _parse(answer, reference)
    listed = manifest.get("manifests")
    if not verbose:
        return _render(manifest)
    if not isinstance(listed, list):
        return _render(_described(answer, manifest, reference))
    if len(listed) > MAX_LISTED:
        raise CliError(
            f"lists {len(listed)} manifests, of which at most {MAX_LISTED} are shown", subject=reference
        )
    found = []
    for item in listed:
        name = f"{split_reference(reference)[0]}@{item.get('digest') if isinstance(item, dict) else ''}"
        one = await fetch(name)
        described = _described(one, _parse(one, name), name)
        if isinstance(platform := item.get("platform"), dict):
            described["Descriptor"]["platform"] = platform
        found.append(described)
    return _render(found)


def _parse(answer: pb.InspectManifestResponse, reference: str) -> dict[str, Any]:
    try:
        manifest = json.loads(answer.manifest)
    except (ValueError, RecursionError) as error:
        raise CliError("its manifest is no JSON", subject=reference) from error
    if not isinstance(manifest, dict):
        raise CliError("its manifest is no JSON object", subject=reference)
    return manifest


def _described(answer: pb.InspectManifestResponse, manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "Ref": f"{name.partition('@')[0]}@{answer.digest}",
        "Descriptor": {
            "mediaType": answer.media_type,
            "digest": answer.digest,
            "size": len(answer.manifest),
        },
        "Raw": base64.b64encode(answer.manifest).decode(),
        FORMS.get(answer.media_type, "Manifest"): manifest,
    }


def _render(value: object) -> str:
    text = json.dumps(value, indent="\t", ensure_ascii=False)
    return printable(text) if sys.stdout.isatty() else text
