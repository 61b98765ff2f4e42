# SPDX-License-Identifier: Apache-2.0
"""The keys that leave a terminal session running: found across reads, withheld until they are not it after all."""

from collections.abc import Iterator

from hyperctl.errors import InvalidError

DEFAULT_KEYS = "ctrl-p,ctrl-q"


def parse_detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` or `a,ctrl-]` -> the bytes a terminal sends for them."""
    keys = bytearray()
    for name in (text or DEFAULT_KEYS).split(","):
        letter = name.removeprefix("ctrl-") if name.startswith("ctrl-") and len(name) == 6 else ""
        if letter and ((letter.isascii() and letter.isalpha()) or letter in "@[\\]^_"):
            keys.append(ord(letter.upper()) - 0x40)
        elif len(name) == 1 and name.isascii():
            keys.append(ord(name))
        else:
            raise InvalidError(
                f"unknown key {name!r}",
                subject="--detach-keys",
                hint="write single characters or ctrl-a ... ctrl-z, ctrl-@ ctrl-[ ctrl-\\ ctrl-] ctrl-^ ctrl-_, "
                "with commas between",
            )
    return bytes(keys)


class DetachScanner:
    """Feeds bytes through; ``detached`` once the whole sequence has been typed."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """What may go on to the process. After the sequence nothing does."""
        if self.detached:
            return b""
        if not self._held and self._keys[0] not in data:
            return data
        return b"".join(self._scan(data))

    def _scan(self, data: bytes) -> Iterator[bytes]:
        for byte in data:
            self._held += bytes((byte,))
            while not self._keys.startswith(self._held):
                yield self._held[:1]
                self._held = self._held[1:]
            if self._held == self._keys:
                self.detached = True
                return
