# SPDX-License-Identifier: Apache-2.0
"""A repository's address without the login that may stand in it: that goes to git in a file, and is told to nobody."""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from hyperd.model.build import GitContext

HIDDEN = "***"
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<login>[^/?#\s]*)@(?P<rest>.*)", re.DOTALL)
_ANYWHERE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/?#\s]*)@")


@dataclass(frozen=True, slots=True)
class Address:
    """``url`` has no login; ``login`` is a line for git-credential-store, or b""."""

    url: str
    login: bytes = field(default=b"", repr=False)
    _secrets: tuple[str, ...] = field(default=(), repr=False)

    def hide(self, text: str) -> str:
        """Someone's words about it, without the login of this or of any other address."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return hide_logins(text)


def address_of(git: GitContext) -> Address:
    """A login of http is taken out, and the password of any other; ssh's user is none."""
    found = _ADDRESS.fullmatch(git.url)
    if found is None:
        return Address(git.url)
    scheme, login, rest = found.group("scheme", "login", "rest")
    user, _, password = login.partition(":")
    secret = password or (user if scheme.startswith("http") else "")
    secrets = tuple(text for text in dict.fromkeys((secret, unquote(secret))) if text)
    if not scheme.startswith("http"):
        return Address(f"{scheme}{user}@{rest}" if user else f"{scheme}{rest}", b"", secrets)
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return Address(f"{scheme}{rest}", f"{scheme}{user}:{password}@{host}\n".encode(), secrets)


def hide_logins(text: str) -> str:
    """``ssh://git@`` stays: it is no secret."""
    return _ANYWHERE.sub(_hidden, text)


def _hidden(found: re.Match[str]) -> str:
    scheme, login = found.groups()
    return f"{scheme}{HIDDEN}@" if scheme.startswith("http") or ":" in login else found.group()
