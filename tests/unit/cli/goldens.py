# SPDX-License-Identifier: Apache-2.0
"""What is printed, held against kept files, and what a fake daemon was asked."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parents[2] / "golden/cli"


def golden(name, text):
    """Compare with a kept file; HYPER_UPDATE_GOLDEN=1 writes it."""
    path = GOLDEN / name
    if os.environ.get("HYPER_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def asked(daemon, kind):
    return [request for request in daemon.requests if isinstance(request, kind)]
