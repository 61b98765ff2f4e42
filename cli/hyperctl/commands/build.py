# SPDX-License-Identifier: Apache-2.0
"""`hyper build`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hyper.v1 import build_pb2 as pb
from hyperctl import build_ssh, options, tree
from hyperctl.build_call import Build
from hyperctl.build_context import open_context
from hyperctl.build_secrets import read_secrets
from hyperctl.errors import InvalidError
from hyperctl.names import familiar_name

app = tree.group()


def _option(*names: str, metavar: str, help_text: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help_text, show_default=False)


@tree.command(app, "build")
def build(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH|URL|-",
            help="A directory, a git repository (URL#REF:DIRECTORY), or a tar or a Dockerfile on standard input",
            show_default=False,
        ),
    ],
    *,
    tags: Annotated[
        list[str] | None, _option("--tag", "-t", metavar="NAME[:TAG]", help_text="Of the image")
    ] = None,
    dockerfile: Annotated[
        str,
        _option("--file", "-f", metavar="FILE", help_text="Instead of PATH/Dockerfile; - is standard input"),
    ] = "",
    build_args: Annotated[
        list[str] | None, _option("--build-arg", metavar="NAME[=VALUE]", help_text="For an ARG")
    ] = None,
    labels: Annotated[
        list[str] | None, _option("--label", metavar="KEY=VALUE", help_text="Of the image")
    ] = None,
    target: Annotated[
        str, _option("--target", metavar="STAGE", help_text="Build no further than this stage")
    ] = "",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step anew")] = False,
    pull: Annotated[bool, typer.Option("--pull", help="Ask the registries for newer base images")] = False,
    platform: Annotated[str, _option("--platform", metavar="OS/ARCH", help_text="The host's alone")] = "",
    secrets: Annotated[
        list[str] | None,
        _option("--secret", metavar="id=ID[,src=FILE|,env=NAME]", help_text="For RUN --mount=type=secret"),
    ] = None,
    ssh: Annotated[
        list[str] | None,
        _option(
            "--ssh",
            metavar="default|ID[=SOCKET|KEY]",
            help_text="An ssh-agent, or keys, that RUN --mount=type=ssh may ask",
        ),
    ] = None,
    network: Annotated[
        str, _option("--network", metavar="NETWORK", help_text="Of RUN: default or none")
    ] = "",
    add_hosts: Annotated[
        list[str] | None, _option("--add-host", metavar="NAME:ADDRESS", help_text="For RUN, in /etc/hosts")
    ] = None,
    shm_size: Annotated[str, _option("--shm-size", metavar="BYTES", help_text="Of /dev/shm for RUN")] = "",
    memory: Annotated[
        str, _option("--memory", "-m", metavar="BYTES", help_text="Of the builder's machine")
    ] = "",
    cpus: Annotated[str, _option("--cpus", metavar="NUMBER", help_text="Of the builder's machine")] = "",
    progress: Annotated[
        str, typer.Option("--progress", metavar="KIND", help="auto and plain are the same; or quiet")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the id at the end")] = False,
    id_file: Annotated[
        str, _option("--iidfile", metavar="FILE", help_text="Write the image's id there")
    ] = "",
) -> int:
    """Build an image from a Dockerfile, in a virtual machine of its own."""
    if progress not in ("auto", "plain", "quiet"):
        raise InvalidError("is not auto, plain or quiet", subject=f"--progress {progress}")
    quiet = quiet or progress == "quiet"
    wanted = pb.BuildOptions(
        tags=tags or [],
        build_args=options.parse_env(build_args or [], os.environ),
        labels=[f"{key}={value}" for key, value in options.parse_pairs("--label", labels or []).items()],
        target=target,
        no_cache=no_cache,
        pull=pull,
        platform=platform,
        network=network,
        extra_hosts=[options.parse_host(text) for text in add_hosts or []],
        secrets=read_secrets(secrets or [], os.environ),
        cpus=options.parse_cpus(cpus) if cpus else 0,
        memory_bytes=options.parse_size("--memory", memory) if memory else 0,
        shm_size_bytes=options.parse_size("--shm-size", shm_size) if shm_size else 0,
    )
    sources = build_ssh.read_sources(ssh or [], os.environ)
    wanted.ssh.extend(source.id for source in sources)
    _forget(id_file)
    context = open_context(place, dockerfile)
    wanted.MergeFrom(context.options)
    with build_ssh.opened(sources) as agents:
        image = Build(context, wanted, agents, quiet=quiet).run()
    if id_file:
        _write(id_file, image.id)
    if quiet:
        print(image.id)
    else:
        lines = [
            f"Successfully built {image.id}",
            *(f"Successfully tagged {familiar_name(tag)}" for tag in image.tags),
        ]
        print("\n".join(lines), file=sys.stderr)
    return 0


def _forget(path: str) -> None:
    """The file of an earlier build says nothing about this one."""
    if path:
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as error:
            raise InvalidError(f"cannot be written: {error.strerror}", subject=path) from error


def _write(path: str, image_id: str) -> None:
    try:
        Path(path).write_text(image_id)
    except OSError as error:
        raise InvalidError(f"cannot be written: {error.strerror}", subject=path) from error
