# SPDX-License-Identifier: Apache-2.0
"""What a builder does to fetch a repository, with the host's git, from a server that can all and from plain files."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperd.build.address import address_of
from hyperd.model.build import GitContext
from tests.harness import ROOT
from tests.repositories import Repository, git_daemon, plain_files

SCRIPT = ROOT / "guestbuilder/root/usr/libexec/hyper/git-context"
ADDRESS = "127.0.0.1"
NOT_THERE = 3
PASSWORD = "pass-word-5309"


@dataclass
class Served:
    """``old`` is a commit that no branch ends in."""

    url: str
    old: str
    target: Path

    def fetch(
        self, ref: str = "", directory: str = "", *, url: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        words = ["sh", str(SCRIPT), url or self.url, ref, str(self.target), directory]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(params=("git", "http"))
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    parent = tmp_path / "served"
    parent.mkdir()
    serve, suffix = (git_daemon, "") if request.param == "git" else (plain_files, "/.git")
    with serve(parent, ADDRESS) as top:
        part, app = Repository(parent, "part"), Repository(parent, "app")
        old = app.commit({"word": "old\n"})
        app.git("tag", "-a", "-m", "first", "v1")
        app.commit({"word": "main\n", "dir/file": ""})
        (app.place / "out").symlink_to("/")
        (app.place / "within").symlink_to("dir")
        app.git("checkout", "-q", "-b", "side/way")
        app.commit({"word": "side\n"})
        app.git("checkout", "-q", "main")
        app.commit({"links": ""})
        app.add_submodule("sub/part", f"{top}/part{suffix}", part.commit({"of": "part\n"}))
        yield Served(f"{top}/app{suffix}", old, tmp_path / "target")


def test_without_a_word_it_is_what_the_server_calls_head_with_its_submodules(served: Served):
    finished = served.fetch()
    assert finished.returncode == 0, finished.stderr
    assert (served.target / "word").read_text() == "main\n"
    assert (served.target / "sub/part/of").read_text() == "part\n"
    assert not list(served.target.rglob(".git"))


@pytest.mark.parametrize(("ref", "word"), [("side/way", "side"), ("v1", "old"), ("refs/heads/main", "main")])
def test_a_branch_or_tag_is_fetched_by_its_name(served: Served, ref: str, word: str):
    finished = served.fetch(ref)
    assert finished.returncode == 0, finished.stderr
    assert (served.target / "word").read_text() == f"{word}\n"


@pytest.mark.parametrize("digits", [40, 9])
def test_a_commit_is_fetched_by_its_hash_or_the_beginning_of_it(served: Served, digits: int):
    finished = served.fetch(served.old[:digits])
    assert finished.returncode == 0, finished.stderr
    assert (served.target / "word").read_text() == "old\n"


def test_a_name_that_the_repository_does_not_have_is_said(served: Served):
    finished = served.fetch("nowhere")
    assert finished.returncode == NOT_THERE
    assert finished.stderr.endswith("the repository has no branch, tag or commit nowhere\n")


@pytest.mark.parametrize("directory", ["dir", "dir/", "sub/part", ".", "within"])
def test_a_directory_of_the_repository_may_be_asked_for(served: Served, directory: str):
    finished = served.fetch("" if directory == "sub/part" else "side/way", directory)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("directory", ["none", "word", "out", "out/tmp", "within/../.."])
def test_what_is_no_directory_of_it_or_leads_out_of_it_is_refused(served: Served, directory: str):
    finished = served.fetch("side/way", directory)
    assert finished.returncode == NOT_THERE
    assert f"the repository has no directory {directory}" in finished.stderr


def test_a_repository_that_is_not_there_is_another_failure(served: Served):
    finished = served.fetch("v1", url=f"{served.url}-not")
    assert finished.returncode not in (0, NOT_THERE)


def test_a_login_comes_in_a_file_which_goes_and_is_told_to_nobody(tmp_path: Path):
    parent, kept = tmp_path / "served", tmp_path / "login"
    parent.mkdir()
    with plain_files(parent, ADDRESS, login=f"me:{PASSWORD}") as top:
        app, part = Repository(parent, "app"), Repository(parent, "part")
        app.add_submodule("part", f"{top}/part/.git", part.commit({"of": "part\n"}))
        for password, fetched in ((PASSWORD, True), ("wrong", False)):
            address = address_of(GitContext(f"{top}/app/.git".replace("//", f"//me:{password}@", 1)))
            kept.write_bytes(address.login)
            assert password not in address.url
            target = tmp_path / f"target-{fetched}"
            words = ["sh", str(SCRIPT), address.url, "", str(target), "", str(kept)]
            finished = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert (finished.returncode == 0) is fetched, finished.stderr
            assert password not in finished.stdout + finished.stderr
            assert (target / "part/of").exists() is fetched
            assert not kept.exists()
