# SPDX-License-Identifier: Apache-2.0
"""The room of virtual machines. Adapters have doors of their own: ``hyperd.vm.libvirt``."""

from hyperd.vm.base import Hypervisor
from hyperd.vm.console import console_tail

__all__ = ["Hypervisor", "console_tail"]
