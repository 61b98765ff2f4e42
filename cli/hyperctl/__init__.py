# SPDX-License-Identifier: Apache-2.0
"""The `hyper` command: Docker's words over hyperd's gRPC contract. Knows nothing of hyperd but `proto/hyper/v1`."""

VERSION = "0.1.0"
