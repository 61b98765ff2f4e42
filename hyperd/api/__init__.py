# SPDX-License-Identifier: Apache-2.0
"""The edge: gRPC in, the service's words out."""

from hyperd.api.build import BuildServicer
from hyperd.api.containers import ContainerServicer
from hyperd.api.floating import FloatingServicer
from hyperd.api.images import ImageServicer
from hyperd.api.networks import NetworkServicer
from hyperd.api.policies import EgressServicer
from hyperd.api.security_groups import SecurityGroupServicer
from hyperd.api.server import Servicers, serving
from hyperd.api.snapshots import SnapshotServicer
from hyperd.api.system import SystemServicer
from hyperd.api.templates import TemplateServicer
from hyperd.api.volumes import VolumeServicer

__all__ = [
    "BuildServicer",
    "ContainerServicer",
    "EgressServicer",
    "FloatingServicer",
    "ImageServicer",
    "NetworkServicer",
    "SecurityGroupServicer",
    "Servicers",
    "SnapshotServicer",
    "SystemServicer",
    "TemplateServicer",
    "VolumeServicer",
    "serving",
]
