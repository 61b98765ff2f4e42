# SPDX-License-Identifier: Apache-2.0
"""Whose credentials go with a reference, and that they show up nowhere else."""

import base64
import json
import stat

import pytest

from hyperctl import credentials, login
from hyperctl.errors import CliError
from tests.fakes.daemon_state import digest

SECRET = "s3cret-" + digest("a password")[-8:]


def auth(user, password=SECRET):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def environ(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def found_for(reference, environ):
    found = credentials.find_credentials(reference, environ)
    assert found is not None
    return found


def keep(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("alpine", "docker.io/library/alpine"),
        ("alpine:3", "docker.io/library/alpine"),
        ("team/app@sha256:" + "0" * 64, "docker.io/team/app"),
        ("localhost/app", "localhost/app"),
        ("localhost:5000/a/b:v1", "localhost:5000/a/b"),
        ("registry.example.org/a", "registry.example.org/a"),
        ("index.docker.io/alpine", "docker.io/library/alpine"),
        ("docker://registry.example.org/a:1", "registry.example.org/a"),
        ("oci:/dir:tag", ""),
        ("docker-archive:/x.tar", ""),
    ],
)
def test_a_reference_has_its_registry(reference, repository):
    assert credentials.repository_of(reference) == repository


def test_hypers_file_comes_before_podmans_and_that_before_dockers(tmp_path, environ):
    home = tmp_path / "home"
    places = [
        home / ".docker/config.json",
        home / ".config/containers/auth.json",
        tmp_path / "run/containers/auth.json",
        home / ".config/hyper/auth.json",
    ]
    assert credentials.find_credentials("example.org/a", environ) is None
    for number, place in enumerate(places):
        keep(place, auths={"example.org": auth(f"user{number}")})
        found = found_for("example.org/a", environ)
        assert (found.username, found.password) == (f"user{number}", SECRET)


def test_the_most_precise_key_is_taken(tmp_path, environ):
    keep(
        tmp_path / "home/.config/hyper/auth.json",
        auths={
            "example.org": auth("all"),
            "example.org/team": auth("team"),
            "example.org/team/app": auth("app"),
        },
    )
    for reference, user in (
        ("other/x", "all"),
        ("team/x", "team"),
        ("team/app:1", "app"),
        ("teamster/x", "all"),
    ):
        assert found_for(f"example.org/{reference}", environ).username == user
    assert credentials.find_credentials("example.org.evil/x", environ) is None


def test_dockers_name_of_the_hub(tmp_path, environ):
    keep(tmp_path / "home/.docker/config.json", auths={"https://index.docker.io/v1/": auth("me")})
    assert found_for("alpine", environ).username == "me"


def test_an_identity_token_stands_for_both(tmp_path, environ):
    keep(tmp_path / "home/.docker/config.json", auths={"example.org": {**auth("me"), "identitytoken": "tok"}})
    found = found_for("example.org/a", environ)
    assert (found.identity_token, found.password) == ("tok", "")


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """`docker-credential-test`, which keeps what it was asked."""

    def install(body):
        program = tmp_path / "bin/docker-credential-test"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\ncat > "{tmp_path}/asked"\necho "$@" >> "{tmp_path}/asked"\n{body}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return tmp_path / "asked"

    return install


def test_helpers_are_asked_on_their_standard_input(tmp_path, environ, helper):
    answer = json.dumps({"ServerURL": "x", "Username": "me", "Secret": SECRET})
    asked = helper(f"echo '{answer}'")
    place = tmp_path / "home/.docker/config.json"
    keep(place, credHelpers={"example.org": "test"})
    assert found_for("example.org/a", environ).password == SECRET
    assert asked.read_text() == "example.orgget\n"
    keep(place, credsStore="test")
    assert found_for("alpine", environ).username == "me"
    assert asked.read_text() == "https://index.docker.io/v1/get\n"


def test_a_token_from_a_helper(tmp_path, environ, helper):
    helper("""echo '{"Username": "<token>", "Secret": "tok"}'""")
    keep(tmp_path / "home/.docker/config.json", credsStore="test")
    assert found_for("example.org/a", environ).identity_token == "tok"


def test_a_helper_that_knows_nothing_leaves_it_to_the_others(tmp_path, environ, helper):
    helper("echo credentials not found in native keychain; exit 1")
    keep(tmp_path / "home/.docker/config.json", credsStore="test", auths={"example.org": auth("me")})
    assert found_for("example.org/a", environ).username == "me"


@pytest.mark.parametrize(
    "body",
    [f"echo {SECRET} >&2; echo {SECRET}; exit 3", f'echo \'{{"Secret": "{SECRET}"}}\'', f"echo {SECRET}"],
)
def test_a_helper_that_fails_is_an_error_without_the_secret(tmp_path, environ, helper, body):
    helper(body)
    keep(tmp_path / "home/.docker/config.json", credsStore="test")
    with pytest.raises(CliError) as caught:
        credentials.find_credentials("example.org/a", environ)
    assert "docker-credential-test" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET not in str(caught.value.__cause__)


def test_a_helper_is_no_path(tmp_path, environ):
    keep(tmp_path / "home/.docker/config.json", credsStore="../../evil")
    with pytest.raises(CliError, match="not the name of a credential helper"):
        credentials.find_credentials("example.org/a", environ)


def test_a_broken_file_is_named_and_not_shown(tmp_path, environ):
    place = tmp_path / "home/.config/hyper/auth.json"
    keep(place)
    place.write_text('{"auths": {"example.org": {"auth": "' + SECRET)
    with pytest.raises(CliError) as caught:
        credentials.find_credentials("example.org/a", environ)
    assert str(place) in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("entry", [None, 7, {}, {"auth": 7}, {"auth": "%%%"}, {"auth": "bm9jb2xvbg=="}, []])
def test_an_entry_that_is_none_is_passed_over(tmp_path, environ, entry):
    keep(tmp_path / "home/.config/hyper/auth.json", auths={"example.org": entry})
    keep(tmp_path / "home/.docker/config.json", auths={"example.org": auth("me")})
    assert found_for("example.org/a", environ).username == "me"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("https://example.org/", "example.org"),
        ("example.org:5000/team", "example.org:5000/team"),
    ],
)
def test_what_a_registry_is_called(text, key):
    assert login.parse_registry(text) == key


@pytest.mark.parametrize("text", ["", "-x", "a b", "example.org/..?", "--tls-verify=false", "a\nb"])
def test_what_is_no_registry(text):
    with pytest.raises(CliError):
        login.parse_registry(text)


def test_a_file_is_changed_as_a_whole_and_is_its_owners_alone(tmp_path):
    place = tmp_path / "new/auth.json"
    with login.changing(place) as draft:
        draft.write_text(
            json.dumps({"auths": {"example.org": auth("me"), "https://example.org/v1/": {}, "b": {}}})
        )
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    with pytest.raises(CliError), login.changing(place) as draft:
        draft.write_text((tmp_path / "nothing").read_text())
    assert login.forget(place, "example.org")
    assert json.loads(place.read_text())["auths"] == {"b": {}}
    assert not login.forget(place, "example.org")
    assert sorted(path.name for path in place.parent.iterdir()) == [".auth.json.lock", "auth.json"]
