# SPDX-License-Identifier: Apache-2.0
"""What a build comes to, and what is refused before anything starts."""

from dataclasses import replace

import pytest

from hyperd.build import plan
from hyperd.build.plan import BuilderSizing
from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.model.build import BuildSpec, GitContext, Secret
from hyperd.model.image import Platform

OURS = Platform("linux", "amd64")
SIZING = BuilderSizing(2.0, 1 << 30, 20 << 30)


def test_the_engines_command_line():
    spec = BuildSpec(
        build_args=("A=b c",),
        labels=("x=y",),
        target="one",
        no_cache=True,
        network="none",
        extra_hosts=("db:10.0.0.1",),
        secrets=(Secret("word", b"sesame"),),
        ssh=("default",),
        shm_size_bytes=1024,
    )
    command = plan.engine_command(spec, {"a@sha256:1": "localhost/hyper-base:2"})
    assert command[-2:] == ("--", "/build/context")
    for word in (
        *(
            "--pull=never",
            "--isolation=oci",
            "--format=docker",
            "--network=none",
            "--no-cache",
            "--target=one",
        ),
        *("--build-arg=A=b c", "--label=x=y", "--add-host=db:10.0.0.1", "--shm-size=1024b"),
        *("--secret=id=word,src=/run/hyper-build/word", "--ignorefile=/dev/null"),
        "--ssh=default=/run/hyper-ssh/default",
        "--build-context=a@sha256:1=docker-image://localhost/hyper-base:2",
    ):
        assert word in command
    assert not any("sesame" in word for word in command)
    assert "--network=host" in plan.engine_command(BuildSpec(), {})
    assert "--ignorefile=/dev/null" not in plan.engine_command(BuildSpec(apply_ignore_file=True), {})


def test_a_directory_of_a_repository_is_the_context():
    spec = BuildSpec(git=GitContext("https://example.org/a.git", "main", "sub/dir/"))
    assert plan.engine_command(spec, {})[-1] == "/build/context/sub/dir"


def test_the_builder_is_found_by_its_label_and_keeps_its_cache():
    wanted = plan.builder_of("abc", "hyper/builder:1", BuildSpec(cpus=1.5), SIZING)
    assert (wanted.name, wanted.labels) == ("hyper-build-abc", {plan.LABEL: "abc"})
    assert (wanted.cpus, wanted.memory_bytes) == (1.5, 1 << 30)
    assert [(mount.source, mount.anonymous) for mount in wanted.mounts] == [(plan.CACHE_VOLUME, False)]
    assert "sesame" not in repr(BuildSpec(secrets=(Secret("word", b"sesame"),)))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"platform": Platform("linux", "arm64")}, UnsupportedError),
        ({"network": "mine"}, InvalidError),
        ({"build_args": ("A",)}, InvalidError),
        ({"labels": ("=x",)}, InvalidError),
        ({"build_args": ("A=\0",)}, InvalidError),
        ({"build_args": tuple(f"A{n}={'x' * 60_000}" for n in range(10))}, InvalidError),
        ({"extra_hosts": ("db",)}, InvalidError),
        ({"dockerfile_path": "../Dockerfile"}, InvalidError),
        ({"dockerfile_path": "a/../../b"}, InvalidError),
        ({"secrets": (Secret("a,b", b""),)}, InvalidError),
        ({"secrets": (Secret("-a", b""),)}, InvalidError),
        ({"secrets": (Secret("..", b""),)}, InvalidError),
        ({"secrets": (Secret("a", b"1"), Secret("a", b"2"))}, InvalidError),
        ({"secrets": (Secret("a", bytes(plan.MAX_SECRET_BYTES + 1)),)}, InvalidError),
        ({"ssh": ("../x",)}, InvalidError),
        ({"ssh": ("a", "a")}, InvalidError),
        ({"ssh": tuple(f"a{number}" for number in range(21))}, InvalidError),
        ({"git": GitContext("--upload-pack=x")}, InvalidError),
        ({"git": GitContext("https://example.org/a.git", "--x")}, InvalidError),
        ({"git": GitContext("https://example.org/a.git", "", "../..")}, InvalidError),
        ({"tags": ("a",) * 101}, InvalidError),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, object], error: type[HyperError]):
    with pytest.raises(error):
        plan.require_valid(replace(BuildSpec(), **change), OURS)  # type: ignore[arg-type]


def test_what_is_meant_is_not_refused():
    spec = BuildSpec(
        tags=("a", "b:1"),
        build_args=("A=", "B=c=d"),
        platform=OURS,
        dockerfile_path="/sub/Dockerfile",
        network="default",
    )
    plan.require_valid(spec, OURS)


def test_an_argument_that_is_too_long_is_named_by_its_key_alone():
    with pytest.raises(InvalidError, match="has a zero byte") as caught:
        plan.require_valid(
            BuildSpec(
                dockerfile=b"FROM scratch", build_args=(f"TOKEN=sesame{'x' * plan.MAX_ARGUMENT_BYTES}",)
            ),
            OURS,
        )
    assert caught.value.subject == "TOKEN"
