# SPDX-License-Identifier: Apache-2.0
"""The configuration that a container runs with, as an image's. Pure."""

from dataclasses import replace

from hyperd.model.container import ContainerRecord
from hyperd.model.image import ImageConfig
from hyperd.sandbox.plans import merged_env


def config_of(record: ContainerRecord, image: ImageConfig) -> ImageConfig:
    """As Docker commits it: what was given at its creation, over its image's; not its host name and terminal."""
    spec = record.spec
    entrypoint, cmd = image.entrypoint, spec.args or image.cmd
    if spec.entrypoint is not None:  # and with it goes the image's Cmd, see specification.command_of
        entrypoint, cmd = spec.entrypoint if spec.entrypoint != ("",) else (), spec.args
    return replace(
        image,
        env=merged_env(image.env, spec.env),
        entrypoint=entrypoint,
        cmd=cmd,
        working_directory=spec.working_directory or image.working_directory,
        user=spec.user or image.user,
        labels={**image.labels, **spec.labels},
        stop_signal=spec.stop_signal or image.stop_signal,
    )
