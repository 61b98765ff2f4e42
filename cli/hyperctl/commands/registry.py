# SPDX-License-Identifier: Apache-2.0
"""`hyper pull`, `push` and `manifest inspect`."""

import sys
from typing import Annotated

import typer

from hyper.v1 import image_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import completion, flags, tree
from hyperctl.client import Client
from hyperctl.credentials import find_credentials, repository_of
from hyperctl.errors import CliError, InvalidError
from hyperctl.names import is_registry_reference, split_reference, with_default_tag
from hyperctl.progress import PUSHING, LayersProgress
from hyperctl.progress_json import JsonProgress, progress_in
from hyperctl.pull import pull_images, pull_request

app = tree.group()

TlsInsecure = Annotated[
    bool, typer.Option("--tls-insecure", help="Plain HTTP, or a certificate that nobody vouches for")
]


@tree.command(app, "pull")
def pull(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG|@DIGEST]",
            help="Also docker-archive:FILE, oci-archive:FILE, oci:DIR",
            show_default=False,
        ),
    ],
    *,
    all_tags: Annotated[bool, typer.Option("--all-tags", "-a", help="All tags of the repository")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the name at the end")] = False,
    platform: Annotated[
        str, typer.Option("--platform", metavar="OS/ARCH", help="Instead of the host's", show_default=False)
    ] = "",
    tls_insecure: TlsInsecure = False,
    form: flags.ProgressFormat = "",
) -> int:
    """Download an image from a registry, or take one from an archive."""
    _require_no_tag(reference, all_tags=all_tags)
    request = pull_request(reference, platform=platform)
    request.tls_insecure, request.all_tags = tls_insecure, all_tags
    headline = "" if all_tags or with_default_tag(reference) == reference else "Using default tag: latest"
    progress = progress_in(form, sys.stdout, quiet=quiet)
    images = hyperd.ask(lambda client: pull_images(client, request, progress, headline))
    if isinstance(progress, JsonProgress):
        for image in images:
            progress.tell({"ID": image.id, "Tags": list(image.tags)})
    else:
        print(repository_of(reference) if all_tags else _full_name(images[-1], reference))
    return 0


def _require_no_tag(reference: str, *, all_tags: bool) -> None:
    if all_tags and any(split_reference(reference)[1:]):
        raise InvalidError("tag can't be used with --all-tags/-a", subject=reference)
    if all_tags and not is_registry_reference(reference):
        raise InvalidError("only a registry has --all-tags/-a", subject=reference)


def _full_name(image: pb.Image, reference: str) -> str:
    """The name it has in the store; what was typed when none of its names is that."""
    if not is_registry_reference(reference):
        return next(iter(image.tags), image.id)
    wanted = with_default_tag(reference)
    for prefix in ("", "docker.io/library/", "docker.io/"):
        if f"{prefix}{wanted}" in image.tags:
            return f"{prefix}{wanted}"
    return wanted


@tree.command(app, "push")
def push(
    reference: Annotated[
        str, typer.Argument(metavar="NAME[:TAG]", autocompletion=completion.images, show_default=False)
    ],
    *,
    all_tags: Annotated[
        bool, typer.Option("--all-tags", "-a", help="All tags of that name that are here")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the name at the end")] = False,
    tls_insecure: TlsInsecure = False,
    form: flags.ProgressFormat = "",
) -> int:
    """Upload an image to the registry in its name."""
    _require_no_tag(reference, all_tags=all_tags)
    repository = repository_of(reference)
    if not repository:
        raise InvalidError("is not the name of an image in a registry", subject=reference)
    request = pb.PushImageRequest(
        reference=reference,
        all_tags=all_tags,
        tls_insecure=tls_insecure,
        credentials=find_credentials(reference),
    )
    headline = "" if all_tags or split_reference(reference)[1] else "Using default tag: latest"
    progress = progress_in(form, sys.stdout, PUSHING, quiet=quiet)
    hyperd.ask(lambda client: _push(client, request, progress, headline))
    if quiet:
        print(repository if all_tags else f"{repository}:{split_reference(reference)[1] or 'latest'}")
    return 0


async def _push(
    client: Client, request: pb.PushImageRequest, progress: LayersProgress | JsonProgress, headline: str
) -> None:
    """hyperd has Docker's words."""
    pushed = False
    try:
        async for response in client.images.PushImage(request):
            if headline:  # only now: hyperd has found the image
                progress.note(headline)
                headline = ""
            match response.WhichOneof("kind"):
                case "blob":
                    progress.show(response.blob)
                case "notice":
                    progress.note(response.notice)
                case "pushed":
                    pushed = True
                    done = response.pushed
                    name = split_reference(done.reference)[1] or done.reference
                    if isinstance(progress, JsonProgress):
                        progress.tell(
                            {"Tag": name, "Digest": done.manifest_digest, "Size": done.manifest_bytes}
                        )
                    else:
                        progress.note(f"{name}: digest: {done.manifest_digest} size: {done.manifest_bytes}")
    finally:
        progress.finish()
    if not pushed:
        raise CliError("the daemon ended the push without a tag pushed", subject=request.reference)


@tree.command(app, "manifest-inspect")
def manifest_inspect(
    references: Annotated[
        list[str],
        typer.Argument(metavar="[MANIFEST_LIST] MANIFEST", help="As the registry has it", show_default=False),
    ],
    *,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain HTTP, or a certificate that nobody vouches for")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also the descriptor, and what a list lists")
    ] = False,
) -> int:
    """Show a manifest, or a list of manifests, in a registry."""
    from hyperctl.manifests import describe

    if len(references) > 2:
        raise InvalidError("one manifest is shown at a time", subject="manifest inspect")
    reference = references[-1]
    credentials = find_credentials(reference)

    async def fetch(client: Client, name: str) -> pb.InspectManifestResponse:
        request = pb.InspectManifestRequest(reference=name, tls_insecure=insecure, credentials=credentials)
        return await client.images.InspectManifest(request, timeout=hyperd.QUERY_TIMEOUT_S)

    print(hyperd.ask(lambda client: describe(lambda name: fetch(client, name), reference, verbose=verbose)))
    return 0
