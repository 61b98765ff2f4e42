# SPDX-License-Identifier: Apache-2.0
"""One module per group of commands; `hyperctl.main` imports only the one that was asked for."""
