# SPDX-License-Identifier: Apache-2.0
"""QEMU through libvirt, embedded in this process or on a libvirtd."""

import os

# libvirt would warn on stderr, at each start of a VM, of what we chose on purpose. It reads this as it is imported.
os.environ.setdefault("LIBVIRT_LOG_FILTERS", "4:qemu 4:security")

from hyperd.vm.libvirt.capabilities import HypervisorCapabilities
from hyperd.vm.libvirt.hypervisor import LibvirtHypervisor
from hyperd.vm.libvirt.settings import LibvirtSettings

__all__ = ["HypervisorCapabilities", "LibvirtHypervisor", "LibvirtSettings"]
