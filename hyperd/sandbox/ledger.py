# SPDX-License-Identifier: Apache-2.0
"""Who holds how much of the host, as the fleet's drivers share it."""

from collections.abc import Callable, Sequence

from hyperd.model.container import Sizing
from hyperd.model.vm import SandboxId
from hyperd.sandbox.admission import Admission


class Ledger:
    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._on_growth: Callable[[], None] = lambda: None

    def tell_growth(self, on_growth: Callable[[], None]) -> None:
        """Called whenever somebody holds more: for what gives way."""
        self._on_growth = on_growth

    def admit(self, sandbox_id: SandboxId, sizing: Sizing) -> None:
        """Raises InvalidError, ExhaustedError; see admission.py."""
        self.admission = self.admission.admit(sandbox_id, sizing)
        self._on_growth()

    def admit_all(self, sandbox_ids: Sequence[SandboxId], sizing: Sizing) -> None:
        """All or none. Raises as ``admit``."""
        self.admission = self.admission.admit_all(sandbox_ids, sizing)
        self._on_growth()

    def hold(self, sandbox_id: SandboxId, sizing: Sizing) -> None:
        """Count a VM that exists already, whether it would be admitted or not."""
        self.admission = self.admission.hold(sandbox_id, sizing)
        self._on_growth()

    def release(self, sandbox_id: SandboxId) -> None:
        self.admission = self.admission.release(sandbox_id)
