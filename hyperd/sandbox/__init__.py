# SPDX-License-Identifier: Apache-2.0
"""The service: sandboxes and the containers in them."""

from hyperd.sandbox.accelerator import AcceleratorChooser, Choice, Findings, fingerprint
from hyperd.sandbox.admission import Admission
from hyperd.sandbox.cloning import CloneOptions
from hyperd.sandbox.definition import GuestSettings, SandboxPaths, Shape
from hyperd.sandbox.errands import Services
from hyperd.sandbox.facts import Facts, kernel_release
from hyperd.sandbox.fleet import Fleet, is_running
from hyperd.sandbox.floating_desk import FloatingDesk
from hyperd.sandbox.handle import SandboxHandle
from hyperd.sandbox.journal import Cursor, Journal, LogEntry
from hyperd.sandbox.ledger import Ledger
from hyperd.sandbox.network_desk import NetworkDesk
from hyperd.sandbox.patience import Turns, parallel_starts
from hyperd.sandbox.policy_desk import PolicyDesk
from hyperd.sandbox.records import Records
from hyperd.sandbox.resetting import Resetting
from hyperd.sandbox.revival import Reviver
from hyperd.sandbox.rooms import Rooms, RunSettings
from hyperd.sandbox.roster import FleetSettings
from hyperd.sandbox.run import Runner
from hyperd.sandbox.session import Session
from hyperd.sandbox.signals import parse_signal
from hyperd.sandbox.spares import SpareMaker, Spares, SpareSettings
from hyperd.sandbox.template import Templates
from hyperd.sandbox.template_build import TemplateBuilder, TemplateSettings
from hyperd.sandbox.volumes import VolumeDesk

__all__ = [
    "AcceleratorChooser",
    "Admission",
    "Choice",
    "CloneOptions",
    "Cursor",
    "Facts",
    "Findings",
    "Fleet",
    "FleetSettings",
    "FloatingDesk",
    "GuestSettings",
    "Journal",
    "Ledger",
    "LogEntry",
    "NetworkDesk",
    "PolicyDesk",
    "Records",
    "Resetting",
    "Reviver",
    "Rooms",
    "RunSettings",
    "Runner",
    "SandboxHandle",
    "SandboxPaths",
    "Services",
    "Session",
    "Shape",
    "SpareMaker",
    "SpareSettings",
    "Spares",
    "TemplateBuilder",
    "TemplateSettings",
    "Templates",
    "Turns",
    "VolumeDesk",
    "fingerprint",
    "is_running",
    "kernel_release",
    "parallel_starts",
    "parse_signal",
]
