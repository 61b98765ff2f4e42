# SPDX-License-Identifier: Apache-2.0
"""Images in and out, in Docker's words."""

import base64
import json
import os
import subprocess

import grpc
import pytest

from hyper.v1 import container_pb2, image_pb2
from hyper.v1 import system_pb2 as system
from tests.fakes.daemon_state import ago, digest
from tests.unit.cli.goldens import asked, golden

SECRET = "pass-word-5309"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "XDG_CONFIG_HOME",
        "XDG_RUNTIME_DIR",
        "DOCKER_CONFIG",
        "REGISTRY_AUTH_FILE",
        "HYPER_AUTH_FILE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def logged_in(tmp_path, monkeypatch):
    file = tmp_path / "auth.json"
    entry = {"auth": base64.b64encode(f"me:{SECRET}".encode()).decode()}
    file.write_text(json.dumps({"auths": {"docker.io": entry}}))
    monkeypatch.setenv("HYPER_AUTH_FILE", str(file))


def test_a_push_in_dockers_words(daemon, hyper):
    golden("push.txt", hyper("push", "alpine").out)
    assert hyper("push", "-q", "alpine").out == "docker.io/library/alpine:latest\n"
    result = hyper("push", "-a", "alpine")
    assert result.out.startswith("The push refers to repository [docker.io/library/alpine]\n")
    assert [request.all_tags for request in asked(daemon, image_pb2.PushImageRequest)] == [False, False, True]
    assert "tag can't be used with --all-tags/-a" in hyper("push", "-a", "alpine:1").err
    assert hyper("push", "nosuch").status == 3


def test_progress_for_programs_is_an_object_a_line(daemon, hyper, tmp_path):
    pulled = [json.loads(line) for line in hyper("pull", "--format", "json", "busybox:1").out.splitlines()]
    layers = [said for said in pulled if "progressDetail" in said]
    assert {said["status"] for said in layers} == {"Downloading", "Extracting"}
    assert all(
        set(said["progressDetail"]) == {"current", "total"} and len(said["id"]) == 12 for said in layers
    )
    reference = "docker.io/library/busybox:1"
    assert pulled[-2:] == [
        {"status": "Status: Downloaded newer image for busybox:1"},
        {"aux": {"ID": digest(reference), "Tags": [reference]}},
    ]
    pushed = [json.loads(line) for line in hyper("push", "--format", "json", "alpine").out.splitlines()]
    assert set(pushed[-1]["aux"]) == {"Tag", "Digest", "Size"}
    file = tmp_path / "images.tar"
    file.write_bytes(daemon.archive)
    loaded = [
        json.loads(line) for line in hyper("load", "--format", "json", "-i", str(file)).out.splitlines()
    ]
    assert set(loaded[-1]["aux"]) == {"ID", "Tags"}
    assert [hyper("pull", "--format", form, *more, "busybox").status for form, more in (
        ("table", ()), ("json", ("-q",)),
    )] == [2, 2]  # fmt: skip


def test_credentials_travel_with_the_call_and_are_never_shown(daemon, hyper, logged_in):
    daemon.manifests["alpine"] = (b"{}", "application/vnd.oci.image.manifest.v1+json")
    shown = [hyper("pull", "busybox"), hyper("push", "alpine"), hyper("manifest", "inspect", "alpine")]
    shown.append(hyper("run", "--pull", "always", "--rm", "alpine", "echo"))
    kinds = (image_pb2.PullImageRequest, image_pb2.PushImageRequest, image_pb2.InspectManifestRequest)
    requests = [request for kind in kinds for request in asked(daemon, kind)]
    assert [r.credentials.password for r in requests] == [SECRET] * 4
    assert SECRET not in str(shown)


def test_without_credentials_none_are_sent(daemon, hyper):
    hyper("pull", "busybox")
    assert not asked(daemon, image_pb2.PullImageRequest)[0].HasField("credentials")


def test_all_tags_are_pulled(daemon, hyper):
    result = hyper("pull", "-a", "busybox")
    assert result.out.splitlines()[-1] == "docker.io/library/busybox"
    assert "docker.io/library/busybox:2" in daemon.images
    assert hyper("pull", "-a", "busybox:1").status == 2


def test_tag(daemon, hyper):
    assert hyper("tag", "alpine", "mine:1").out == ""
    [request] = asked(daemon, image_pb2.TagImageRequest)
    assert (request.image, request.reference) == ("alpine", "mine:1")
    assert hyper("tag", "nosuch", "mine:1").status == 3


@pytest.fixture
def several(daemon):
    daemon.images.clear()
    daemon.add_image("debian:12", age_s=86400 * 20).config.labels["team"] = "a"
    daemon.add_image("alpine:3", age_s=3600)
    daemon.add_image("registry.example.org/team/app:v1", age_s=60).tags.append("docker.io/library/app:v2")
    nameless = daemon.add_image("gone:1", age_s=120)
    nameless.tags[:] = []
    nameless.digests[:] = []


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("-f", "dangling=true"), "<none>"),
        (("-f", "dangling=false", "-f", "label=team"), "debian:12"),
        (("-f", "label=team=b"), ""),
        (("-f", "before=alpine:3"), "debian:12"),
        (("-f", "since=alpine:3", "-f", "dangling=0"), "registry.example.org/team/app:v1 app:v2"),
        (("-f", "until=1h30m"), "debian:12"),
        (("-f", "reference=a*"), "app:v2 alpine:3"),
        (("-f", "reference=*:v1"), ""),
        (("-f", "reference=*/*/*:v?"), "registry.example.org/team/app:v1"),
        (("-f", "reference=[bd]eb*", "-f", "reference=alpine"), "alpine:3 debian:12"),
        (("alpine",), "alpine:3"),
        (("docker.io/library/alpine:3",), "alpine:3"),
    ],
)
def test_filters_of_images(several, hyper, args, expected):
    result = hyper("images", *args, "--format", "{{.Repository}}:{{.Tag}}")
    assert result.out.replace(":<none>", "").split() == expected.split()


def test_filters_that_cannot_be(several, hyper):
    assert hyper("images", "-f", "before=nosuch").status == 3
    assert hyper("images", "-f", "reference=[").status == 2
    assert hyper("images", "-f", "size=1").status == 2
    assert hyper("images", "-f", "until=then").status == 2


@pytest.fixture
def stepped(daemon):
    image = daemon.images["docker.io/library/alpine:latest"]
    image.history.extend(
        [
            image_pb2.HistoryEntry(
                created_at=ago(86400 * 30), created_by="/bin/sh -c #(nop) ADD file:0123 in / "
            ),
            image_pb2.HistoryEntry(created_at=ago(7200), created_by='CMD ["sh"]', empty_layer=True),
            image_pb2.HistoryEntry(
                created_at=ago(3600), created_by="RUN a\tb" + " long" * 20, comment="buildkit"
            ),
        ]
    )
    return image


def test_history_is_dockers_table(stepped, hyper):
    golden("history.txt", hyper("history", "alpine").out)
    assert hyper("history", "-q", "--no-trunc", "alpine").out == f"{stepped.id}\n<missing>\n<missing>\n"
    rows = hyper(
        "history", "--human=false", "--format", "{{.Size}} {{.CreatedSince}}", "alpine"
    ).out.splitlines()
    assert [row.split()[0] for row in rows] == ["2611522", "0", "5223045"]
    assert rows[0].endswith("Z")


def test_a_healthcheck_is_shown_as_it_is(daemon, hyper):
    image = daemon.images["docker.io/library/alpine:latest"]
    form = ("image", "inspect", "-f", "{{json .Config.Healthcheck}}", "alpine")
    assert hyper(*form).out == "null\n"
    image.config.healthcheck_json = '{"Test": ["CMD", "true"], "Interval": 5000000000}'
    assert json.loads(hyper(*form).out) == {"Test": ["CMD", "true"], "Interval": 5_000_000_000}
    image.config.healthcheck_json = "[" * 100_000
    assert hyper(*form).out == "null\n"


def test_a_search_is_shown_as_docker_does(daemon, hyper):
    golden("search.txt", hyper("search", "busybox").out)
    [request] = asked(daemon, image_pb2.SearchImagesRequest)
    assert (request.term, request.limit) == ("busybox", 25)
    assert "…" not in hyper("search", "--no-trunc", "busybox").out
    names = ("search", "--format", "{{.Name}} {{.StarCount}} {{.IsOfficial}} {{.IsAutomated}}", "busybox")
    assert hyper(*names).out == "busybox 3000 [OK] \nuser/busybox 2  [OK]\n"
    first = json.loads(hyper("search", "--limit", "1", "--format", "json", "busybox").out)
    assert (first["IsOfficial"], first["IsAutomated"], first["StarCount"]) == ("true", "false", "3000")
    for given, found in (
        ("stars=3000", ["busybox"]),
        ("is-official=false", ["user/busybox"]),
        ("is-automated=1", ["user/busybox"]),
        ("stars=3001", []),
    ):
        assert hyper("search", "-f", given, "--format", "{{.Name}}", "busybox").out.split() == found


@pytest.mark.parametrize(
    "wrong",
    [
        ("--limit", "0"),
        ("--limit", "101"),
        ("--limit", "x"),
        ("--limit", "9" * 5000),
        ("-f", "stars=x"),
        ("-f", "stars=" + "9" * 5000),
        ("-f", "is-official=perhaps"),
        ("-f", "colour=blue"),
    ],
)
def test_a_search_that_makes_no_sense_asks_nobody(daemon, hyper, wrong):
    assert hyper("search", *wrong, "busybox").status == 2
    assert asked(daemon, image_pb2.SearchImagesRequest) == []


def test_save_and_load(daemon, hyper, tmp_path):
    file = tmp_path / "images.tar"
    assert hyper("save", "-o", str(file), "alpine", "--platform", "linux/amd64").status == 0
    assert asked(daemon, image_pb2.SaveImagesRequest)[0].platform == "linux/amd64"
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (daemon.archive, 0o600)
    result = hyper("load", "-i", str(file), "--platform", "linux/amd64")
    assert result.out == f"Loaded image: loaded:1\nLoaded image ID: {digest('nameless')}\n"
    assert asked(daemon, image_pb2.LoadImagesRequest)[0].platform == "linux/amd64"
    assert hyper("save", "-o", f"{tmp_path}/none.tar", "nosuch").status == 3
    assert [path.name for path in tmp_path.iterdir() if "tar" in path.name] == ["images.tar"]
    file.write_bytes(b"x" * 5_000_000)
    assert (hyper("load", "-q", "-i", str(file)).status, hyper("load", "-i", f"{tmp_path}/none").status) == (
        2,
        2,
    )


def test_a_reader_that_goes_ends_it_quietly(daemon, spawn):
    daemon.archive = bytes(20_000_000)
    child = spawn("save", "alpine", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.read(1)
    child.stdout.close()
    assert child.wait(60) == 141
    assert child.stderr.read() == b""


def test_a_load_through_a_pipe(daemon, spawn):
    child = spawn("load", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.communicate(daemon.archive, 60)[0].startswith(b"Loaded image: loaded:1\n")


def test_nothing_binary_goes_to_or_comes_from_a_terminal(daemon, spawn):
    leader, follower = os.openpty()
    try:
        for args in (
            ("save", "alpine"),
            ("export", "c"),
            ("load",),
            ("import", "-"),
            ("cp", "c:/x", "-"),
            ("cp", "-", "c:/x"),
        ):
            child = spawn(*args, stdin=follower, stdout=follower, stderr=subprocess.PIPE)
            said = child.communicate(timeout=60)[1]
            assert (child.returncode, b"refusing to" in said) == (2, True), args
    finally:
        os.close(leader)
        os.close(follower)


def test_import(daemon, hyper, tmp_path):
    file = tmp_path / "root.tar"
    file.write_bytes(b"a root")
    result = hyper(
        "import",
        "-c",
        'CMD ["sh"]',
        "-c",
        "USER me",
        "-m",
        "why",
        "--platform",
        "linux/amd64",
        str(file),
        "r:1",
    )
    assert result.out == f"{digest('a root')}\n"
    [first] = asked(daemon, image_pb2.ImportImageRequest)
    assert first.options == image_pb2.ImportOptions(
        reference="r:1", message="why", changes=['CMD ["sh"]', "USER me"], platform="linux/amd64"
    )
    refused = hyper("import", "https://example.org/root.tar")
    assert (refused.status, "hint: curl -L https://example.org/root.tar | hyper import -" in refused.err) == (
        2,
        True,
    )


@pytest.fixture
def web(daemon):
    return daemon.add_container(container_pb2.ContainerSpec(name="web", image="alpine"))


def test_commit(daemon, web, hyper):
    result = hyper("commit", "-a", "me", "-m", "why", "-c", "ENV A=1", "--pause=false", "web", "mine:1")
    assert (result.status, result.out, result.err) == (0, f"{digest(f'commit of {web.id}')}\n", "")
    assert hyper("commit", "web").status == 0
    first, second = asked(daemon, container_pb2.CommitContainerRequest)
    assert first == container_pb2.CommitContainerRequest(
        container="web", reference="mine:1", author="me", message="why", changes=["ENV A=1"], no_pause=True
    )
    assert second == container_pb2.CommitContainerRequest(container="web")


def test_diff_takes_any_name(daemon, web, spawn):
    kinds = (
        container_pb2.CHANGE_KIND_ADDED,
        container_pb2.CHANGE_KIND_MODIFIED,
        container_pb2.CHANGE_KIND_DELETED,
    )
    for kind, path in zip(kinds, (b"/new\xff", b"/etc", b"/gone"), strict=True):
        daemon.files.changes.append(container_pb2.Change(kind=kind, path=path))
    child = spawn("diff", "web", stdout=subprocess.PIPE)
    assert child.communicate(timeout=60)[0] == b"A /new\xff\nC /etc\nD /gone\n"


def test_export(daemon, web, hyper, tmp_path):
    daemon.files.root = b"root" * 1_000_000
    assert hyper("export", "-o", f"{tmp_path}/root.tar", "web").status == 0
    assert (tmp_path / "root.tar").read_bytes() == daemon.files.root


LIST = json.dumps({"schemaVersion": 2, "manifests": [{"digest": "sha256:aa", "platform": {"os": "linux"}}]})


def test_manifest_inspect(daemon, hyper):
    daemon.manifests = {
        "example.org/a:1": (LIST.encode(), "application/vnd.oci.image.index.v1+json"),
        "example.org/a@sha256:aa": (b'{"layers": []}', "application/vnd.oci.image.manifest.v1+json"),
        "bad": (b"[", ""),
    }
    assert json.loads(hyper("manifest", "inspect", "example.org/a:1").out) == json.loads(LIST)
    [one] = json.loads(hyper("manifest", "inspect", "-v", "--insecure", "example.org/a:1").out)
    assert one["Ref"] == f"example.org/a@{digest(json.dumps({'layers': []}))}"
    assert (one["OCIManifest"], one["Descriptor"]["platform"]) == ({"layers": []}, {"os": "linux"})
    assert asked(daemon, image_pb2.InspectManifestRequest)[-1].tls_insecure
    assert hyper("manifest", "inspect", "bad").err == "hyper: bad: its manifest is no JSON\n"


def test_the_daemons_refusal_of_a_load_is_told(daemon, spawn):
    daemon.fail_next("LoadImages", grpc.StatusCode.RESOURCE_EXHAUSTED, "no space", subject="images")
    child = spawn("load", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.communicate(daemon.archive, 60)[1] == b"hyper: images: no space\n"
    assert child.returncode == 5


def test_disk_usage(daemon, web, hyper):
    image = daemon.images["docker.io/library/alpine:latest"]
    web.created_at.CopyFrom(ago(7200))
    daemon.usage = system.GetDiskUsageResponse(
        images=[
            system.ImageUsage(
                id=image.id, tags=image.tags, shared_bytes=1_000_000, unique_bytes=4_000_000, containers=1
            ),
            system.ImageUsage(id=digest("unused"), shared_bytes=1_000_000, unique_bytes=3_000_000),
        ],
        layers_bytes=8_000_000,
        unowned_bytes=500_000,
        containers=[system.ContainerUsage(id=web.id, name="web", writable_bytes=2_000_000, log_bytes=1000)],
        snapshots=[
            system.SnapshotUsage(id="a" * 64, kind="sandbox", name="warm", bytes=50_000_000),
            system.SnapshotUsage(id="b" * 64, kind="template", bytes=40_000_000),
            system.SnapshotUsage(id="c" * 64, kind="hibernation", bytes=30_000_000),
        ],
        volumes=[
            system.VolumeUsage(name="db", bytes=60_000_000, containers=1, attached=1),
            system.VolumeUsage(name="old", bytes=20_000_000),
        ],
    )
    golden("system-df.txt", hyper("system", "df").out)
    golden("system-df-v.txt", hyper("system", "df", "-v").out)
    assert hyper("system", "df", "--format", "{{.Type}} {{.Size}}").out.splitlines()[0] == "Images 8.5MB"
    row = json.loads(hyper("system", "df", "--format", "json").out.splitlines()[1])
    assert row["Reclaimable"] == "2.001MB (6%)"
    detailed = json.loads(hyper("system", "df", "-v", "--format", "json").out)
    assert [item["ID"] for item in detailed["Templates"]] == ["b" * 12]
    before = hyper("system", "df").out
    daemon.usage.image_budget.CopyFrom(
        system.ImageBudget(high_bytes=20_000_000, low_bytes=16_000_000, removed=2, removed_bytes=7_000_000)
    )
    told = "\nImages: budget 20MB, down to 16MB; removed for it since hyperd started: 2 (7MB)\n"
    assert hyper("system", "df").out == before + told
    assert hyper("system", "df", "--format", "{{.Type}}").out.splitlines()[0] == "Images"
    assert "budget" not in hyper("system", "df", "--format", "json").out
