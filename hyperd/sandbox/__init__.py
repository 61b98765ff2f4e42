# SPDX-License-Identifier: Apache-2.0
"""The service: sandboxes and the containers in them."""

from hyperd.sandbox.accelerator import AcceleratorChooser, Choice, Findings, fingerprint
from hyperd.sandbox.admission import Admission
from hyperd.sandbox.assembly import GuestSettings, SandboxPaths, parse_signal
from hyperd.sandbox.errands import Services
from hyperd.sandbox.fleet import Fleet, FleetSettings, is_running
from hyperd.sandbox.handle import SandboxHandle
from hyperd.sandbox.journal import Cursor, Journal, LogEntry
from hyperd.sandbox.ledger import Ledger
from hyperd.sandbox.records import Records
from hyperd.sandbox.run import Rooms, Runner, RunSettings
from hyperd.sandbox.session import Session

__all__ = [
    "AcceleratorChooser",
    "Admission",
    "Choice",
    "Cursor",
    "Findings",
    "Fleet",
    "FleetSettings",
    "GuestSettings",
    "Journal",
    "Ledger",
    "LogEntry",
    "Records",
    "Rooms",
    "RunSettings",
    "Runner",
    "SandboxHandle",
    "SandboxPaths",
    "Services",
    "Session",
    "fingerprint",
    "is_running",
    "parse_signal",
]
