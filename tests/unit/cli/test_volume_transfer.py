# SPDX-License-Identifier: Apache-2.0
"""`hyper volume export`, `import` and `init`: what a volume is filled from."""

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest


def tar_of(**files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(text)
            tar.addfile(header, io.BytesIO(text.encode()))
    return out.getvalue()


def names_in(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name.removeprefix("./"): member.size for member in tar if member.isfile()}


@pytest.fixture
def volume(daemon, hyper):
    hyper("volume", "create", "db")
    return lambda: names_in(daemon.filled["db"])


def test_a_volume_goes_to_a_file_and_comes_back(daemon, hyper, tmp_path):
    hyper("volume", "create", "db")
    assert hyper("volume", "export", "db", "-o", str(tmp_path / "db.tar")).status == 0
    assert (tmp_path / "db.tar").read_bytes() == b"a volume: db"
    assert hyper("volume", "import", "back", "-i", str(tmp_path / "db.tar")).out == "back\n"
    (tmp_path / "wrong.tar").write_bytes(b"nonsense")
    wrong = hyper("volume", "import", "wrong", "-i", str(tmp_path / "wrong.tar"))
    assert (wrong.status, f"hyper: {tmp_path}/wrong.tar: " in wrong.err) == (2, True)
    assert hyper("volume", "export", "none", "-o", str(tmp_path / "none.tar")).status == 3
    assert not (tmp_path / "none.tar").exists()


def test_a_directory_is_what_is_in_it(hyper, volume, tmp_path):
    (tmp_path / "site" / "deep").mkdir(parents=True)
    (tmp_path / "site" / "index").write_text("hello")
    (tmp_path / "site" / "deep" / "page").write_text("deep down")
    assert hyper("volume", "init", "db", str(tmp_path / "site")).out == "db\n"
    assert volume() == {"index": 5, "deep/page": 9}


@pytest.mark.parametrize("press", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_may_be_packed(hyper, volume, tmp_path, press):
    (tmp_path / "data.tar").write_bytes(press(tar_of(a="one", b="x" * 300_000)))
    assert hyper("volume", "init", "db", str(tmp_path / "data.tar")).status == 0
    assert volume() == {"a": 3, "b": 300_000}


@pytest.mark.parametrize("press", [gzip.compress, bz2.compress, lzma.compress])
def test_one_that_is_cut_off_is_told(hyper, volume, tmp_path, press):
    (tmp_path / "data.tar").write_bytes(press(tar_of(a="one" * 100_000))[:-20])
    result = hyper("volume", "init", "db", str(tmp_path / "data.tar"))
    assert (result.status, "cannot be unpacked" in result.err) == (1, True)


def test_what_is_not_there_or_not_known_is_told(daemon, hyper, volume, tmp_path):
    (tmp_path / "data.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    result = hyper("volume", "init", "db", str(tmp_path / "data.tar.zst"))
    assert (result.status, "zstd -dc" in result.err) == (2, True)
    assert hyper("volume", "init", "db", str(tmp_path / "none.tar")).status == 2
    assert hyper("volume", "init", "none", str(tmp_path)).status == 3
    result = hyper("volume", "init", "db", "http://127.0.0.1:9/data.tar")
    assert (result.status, "cannot be fetched" in result.err) == (7, True)
    result = hyper("volume", "init", "db", "ftp://127.0.0.1/data.tar")
    assert (result.status, "git+SCHEME://" in result.err) == (2, True)


def test_a_server_is_asked_for_a_tar(hyper, volume, tmp_path):
    (tmp_path / "data.tgz").write_bytes(gzip.compress(tar_of(a="one")))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert hyper("volume", "init", "db", f"{url}/data.tgz").status == 0
            assert volume() == {"a": 3}
            result = hyper("volume", "init", "db", f"{url}/none.tgz")
            assert (result.status, "the server answered 404" in result.err) == (3, True)
        finally:
            server.shutdown()
            serving.join()


def test_a_repository_is_cloned_at_a_branch(hyper, volume, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    repository = tmp_path / "project"

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", repository, *identity, *arguments], check=True, capture_output=True)

    repository.mkdir()
    git("init", "-q", "-b", "main")
    (repository / "file").write_text("one")
    git("add", "-A")
    git("commit", "-qm", "one")
    git("switch", "-qc", "v2")
    (repository / "file").write_text("second")
    git("commit", "-qam", "two")
    for reference, size in (("main", 3), ("v2", 6)):
        source = f"git+file://{repository}#{reference}"
        assert hyper("volume", "init", "-q", "db", source).status == 0
        assert volume()["file"] == size
    result = hyper("volume", "init", "-q", "db", f"git+file://{repository}#none")
    assert (result.status, "cannot be cloned" in result.err) == (1, True)
