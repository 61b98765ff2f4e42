# SPDX-License-Identifier: Apache-2.0
"""QEMU through libvirt, embedded in this process or on a libvirtd."""

from hyperd.vm.libvirt.capabilities import HypervisorCapabilities
from hyperd.vm.libvirt.hypervisor import LibvirtHypervisor
from hyperd.vm.libvirt.settings import LibvirtSettings

__all__ = ["HypervisorCapabilities", "LibvirtHypervisor", "LibvirtSettings"]
