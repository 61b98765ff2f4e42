# SPDX-License-Identifier: Apache-2.0
"""What is known of the host."""

import enum
from dataclasses import dataclass


class CheckLevel(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class HostCheck:
    """One requirement, held against this host."""

    name: str
    level: CheckLevel
    finding: str
    advice: str = ""  # "" when ok
