# SPDX-License-Identifier: Apache-2.0
"""The configuration of a commit's container in the place of its image's. Pure."""

from collections.abc import Mapping
from typing import Any

from hyperd.model.image import ImageConfig


def overridden(config: Mapping[str, Any], overrides: ImageConfig | None) -> dict[str, Any]:
    """``config`` is an image's as the JSON it is. What a container cannot change stays, known here or not."""
    if overrides is None:
        return dict(config)
    ours: dict[str, object] = {
        "Env": list(overrides.env),
        "Entrypoint": list(overrides.entrypoint),
        "Cmd": list(overrides.cmd),
        "WorkingDir": overrides.working_directory,
        "User": overrides.user,
        "Labels": dict(overrides.labels),
        "StopSignal": overrides.stop_signal,
    }
    kept = {key: value for key, value in config.items() if key not in ours}
    return kept | {key: value for key, value in ours.items() if value}
