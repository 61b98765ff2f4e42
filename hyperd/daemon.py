# SPDX-License-Identifier: Apache-2.0
"""The composition root: the only module that knows all the others."""
