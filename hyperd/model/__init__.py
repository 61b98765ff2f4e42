# SPDX-License-Identifier: Apache-2.0
"""The nouns. No I/O, no asyncio, no foreign type."""
