# SPDX-License-Identifier: Apache-2.0
import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import InvalidError
from hyperd.image.logins import render_authfile, require_sensible
from hyperd.model.image import Credentials

SOMEBODY = {"auth": base64.b64encode(b"some:body").decode()}


def rendered(credentials, registry, *others):
    return json.loads(render_authfile(credentials, registry, list(others)))


def test_the_callers_word_counts_for_its_registry_and_the_daemons_for_others():
    daemon = {
        "auths": {"example.org": SOMEBODY, "example.org/team": SOMEBODY, "localhost:5000": SOMEBODY},
        "credHelpers": {"example.org": "vault", "example.org:5000": "vault"},
        "credsStore": "desktop",
    }
    less_important = {"auths": {"localhost:5000": {"auth": "old"}, "localhost:6000": SOMEBODY}}
    body = rendered(Credentials("me", "pass:word"), "example.org", daemon, less_important)
    assert body == {
        "auths": {
            "example.org": {"auth": base64.b64encode(b"me:pass:word").decode()},
            "localhost:5000": SOMEBODY,
            "localhost:6000": SOMEBODY,
        },
        "credHelpers": {"example.org:5000": "vault"},
    }


@pytest.mark.parametrize(
    "key", ["docker.io", "https://index.docker.io/v1/", "index.docker.io", "docker.io/me"]
)
def test_dockers_own_registry_has_many_names_and_one_login(key):
    body = rendered(Credentials("me", "x"), "docker.io", {"auths": {key: SOMEBODY}})
    assert list(body["auths"]) == ["docker.io"]
    assert body["auths"]["docker.io"] != SOMEBODY


def test_an_identity_token_goes_in_its_own_field():
    body = rendered(Credentials(identity_token="token"), "example.org")
    assert body["auths"]["example.org"]["identitytoken"] == "token"
    assert base64.b64decode(body["auths"]["example.org"]["auth"]) == b"<token>:"


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(password="alone"),
        Credentials("a:b", "se-cret"),
        Credentials("a\x00", "se-cret"),
        Credentials("a", "b" * 70_000),
        Credentials(identity_token="\x00"),
    ],
)
def test_credentials_that_no_registry_could_mean_are_refused_without_being_told(credentials):
    with pytest.raises(InvalidError) as caught:
        require_sensible(credentials)
    for secret in (credentials.password, credentials.identity_token):
        assert not secret or secret not in str(caught.value)
    assert credentials.password == "" or credentials.password not in repr(credentials)


@given(
    other=st.recursive(st.none() | st.booleans() | st.text(), lambda each: st.dictionaries(st.text(), each))
)
def test_whatever_stands_in_the_daemons_file_the_callers_login_is_whole(other):
    body = rendered(
        Credentials("me", "x"), "example.org", other if isinstance(other, dict) else {"auths": other}
    )
    assert body["auths"]["example.org"] == {"auth": "bWU6eA=="}
