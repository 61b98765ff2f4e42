# SPDX-License-Identifier: Apache-2.0
"""The one native thread that runs libvirt's event loop, shared by every connection of this process."""

import threading

import libvirt

_guard = threading.Lock()
_users = 0
_stop = threading.Event()
_thread: threading.Thread | None = None
_registered = False


def acquire_event_thread() -> None:
    """Must happen before a connection is opened. Counted: as many ``release_event_thread`` end it."""
    global _users, _thread, _registered  # noqa: PLW0603 - libvirt has one event loop per process
    with _guard:
        _users += 1
        if _users > 1:
            return
        if not _registered:
            libvirt.virEventRegisterDefaultImpl()
            # Errors come as exceptions; libvirt would print each to stderr as well.
            libvirt.registerErrorHandler(_silent, None)
            _registered = True
        _stop.clear()
        _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
        _thread.start()


def release_event_thread() -> None:
    """Blocks until the thread has ended, for the last user."""
    global _users, _thread  # noqa: PLW0603
    with _guard:
        _users -= 1
        thread = _thread
        if _users > 0 or thread is None:
            return
        _stop.set()
        timer = libvirt.virEventAddTimeout(0, _nothing, None)  # wakes the loop
        thread.join()
        libvirt.virEventRemoveTimeout(timer)
        _thread = None


def _run() -> None:
    while not _stop.is_set():
        libvirt.virEventRunDefaultImpl()


def _nothing(_timer: int, _opaque: object) -> None:
    pass


def _silent(_context: object, _error: object) -> None:
    pass
