# SPDX-License-Identifier: Apache-2.0
"""Where the `hyper` program begins: an interrupt while it is still being loaded ends it without a traceback."""

import gc
import os
import signal

# What is loaded stays, and looking through it for what does not is a twentieth of a short command's time.
gc.set_threshold(100_000)

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, and stays so
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# gRPC tells of a connection that ended in lines of its own on standard error; hyper says it in its own words.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from hyperctl.main import main  # noqa: E402 - loading it is what the above is for

__all__ = ["main"]
