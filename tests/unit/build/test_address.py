# SPDX-License-Identifier: Apache-2.0
"""A repository's address and the login in it, which nobody is told."""

import pytest

from hyperd.build.address import address_of, hide_logins
from hyperd.model.build import GitContext


@pytest.mark.parametrize(
    ("url", "bare", "login"),
    [
        ("https://example.org/a.git", "https://example.org/a.git", b""),
        (
            "https://me:sesame@example.org:8443/a.git",
            "https://example.org:8443/a.git",
            b"https://me:sesame@example.org:8443\n",
        ),
        (
            "https://me:ses%40me@example.org/a@b",
            "https://example.org/a@b",
            b"https://me:ses%40me@example.org\n",
        ),
        ("https://me:ses@me@example.org/a", "https://example.org/a", b"https://me:ses@me@example.org\n"),
        ("http://token@example.org/a", "http://example.org/a", b"http://token:@example.org\n"),
        ("ssh://git@example.org/a", "ssh://git@example.org/a", b""),
        ("ssh://git:sesame@example.org/a", "ssh://git@example.org/a", b""),
        ("git@example.org:a/b", "git@example.org:a/b", b""),
        ("/srv/a@b", "/srv/a@b", b""),
    ],
)
def test_the_login_is_taken_out(url: str, bare: str, login: bytes):
    address = address_of(GitContext(url))
    assert (address.url, address.login) == (bare, login)
    assert "ses" not in repr(address)
    assert "ses" not in repr(GitContext(url))


@pytest.mark.parametrize(
    ("url", "said", "told"),
    [
        ("https://me:ses%40me@example.org/a", "bad: ses%40me or ses@me", "bad: *** or ***"),
        ("http://token@example.org/a", "no token", "no ***"),
        ("https://example.org/a", "of https://me:x@other.example/b", "of https://***@other.example/b"),
        ("ssh://git@example.org/a", "of ssh://git@example.org/a git", "of ssh://git@example.org/a git"),
        ("ssh://git:x1y@example.org/a", "x1y, ssh://a:b@c", "***, ssh://***@c"),
    ],
)
def test_what_is_said_of_it_has_no_login(url: str, said: str, told: str):
    assert address_of(GitContext(url)).hide(said) == told


def test_logins_are_hidden_wherever_they_stand():
    assert hide_logins("a https://u:p@h/x, https://v@i") == "a https://***@h/x, https://***@i"
