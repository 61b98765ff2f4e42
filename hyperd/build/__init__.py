# SPDX-License-Identifier: Apache-2.0
"""Images from Dockerfiles, built in a machine of their own. docs/build.md."""

from hyperd.build.bases import AskCredentials, Event, Respond
from hyperd.build.plan import BuilderSizing
from hyperd.build.service import Builds, BuildSettings
from hyperd.build.ssh import MAX_MESSAGE_BYTES, AskAgent

__all__ = [
    "MAX_MESSAGE_BYTES",
    "AskAgent",
    "AskCredentials",
    "BuildSettings",
    "BuilderSizing",
    "Builds",
    "Event",
    "Respond",
]
