# SPDX-License-Identifier: Apache-2.0
"""What `make setup` does: everything between a fresh Debian machine and a checkout that runs.

Standard library only, and Debian's python3: nothing else is there yet. `step` runs one step and says what it did,
`cache` keeps what is expensive to build, and each other module is one step.
"""
