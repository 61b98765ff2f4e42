# SPDX-License-Identifier: Apache-2.0
"""Images from Dockerfiles, built in a machine of their own. docs/build.md."""

from hyperd.build.bases import AskCredentials, Event, Respond
from hyperd.build.plan import BuilderSizing
from hyperd.build.service import Builds, BuildSettings

__all__ = ["AskCredentials", "BuildSettings", "BuilderSizing", "Builds", "Event", "Respond"]
