# SPDX-License-Identifier: Apache-2.0
"""Which images a Dockerfile needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.build import plan
from hyperd.build.dockerfile import base_images
from hyperd.build.words import expand
from hyperd.model.image import Platform

PLATFORM = plan.platform_args(Platform("linux", "amd64"))


def images(text: str, target: str = "", **build_args: str) -> list[str]:
    return base_images(text.encode(), build_args=build_args, target=target, platform_args=PLATFORM)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM alpine", ["alpine"]),
        ("from Alpine:3 as x\n", ["Alpine:3"]),
        ("# FROM no\n\n  FROM \\\n# a comment\n\n  alpine \\\n AS x", ["alpine"]),
        ("\ufeffFROM alpine", ["alpine"]),
        ("# escape=`\nFROM `\nalpine", ["alpine"]),
        ("FROM --platform=$BUILDPLATFORM alpine", ["alpine"]),
        ("FROM scratch\nCOPY x /", []),
        ("FROM alpine@sha256:" + "0" * 64, ["alpine@sha256:" + "0" * 64]),
        ("FROM alpine\nRUN <<EOF\nFROM no\nEOF\nFROM busybox", ["busybox"]),
        ("FROM alpine\nRUN <<-'EOF' cat\n\tFROM no\n\tEOF\nCOPY --from=busybox /a /b", ["alpine", "busybox"]),
        ("FROM alpine\nRUN --mount=type=bind,from=tools:1,target=/t true", ["alpine", "tools:1"]),
        ('FROM alpine\nCOPY --chown=1 --from="busybox" /a /b', ["alpine", "busybox"]),
        ("FROM a\nRUN cat <<<HELLO\nFROM b", ["b"]),
        ("FROM a\nRUN echo 'see <<EOF here'\nCOPY --from=b / /", ["a", "b"]),
        ("FROM a\nRUN cat <<NEVER\nCOPY --from=b / /", ["a", "b"]),
        ('FROM a\nRUN cat 3<<"E F" <<~G\nFROM no\nE F\nFROM no\nG\nFROM b', ["b"]),
        ("FROM a\nENV TOOLS tools:1\nCOPY --from=$TOOLS / /", ["a", "tools:1"]),
        ("", []),
        ("RUN echo $(cat <<EOF", []),
    ],
)
def test_the_images_of_a_dockerfile(text: str, found: list[str]):
    assert images(text) == found


def test_only_what_the_target_stands_on_is_wanted():
    text = """
FROM a AS one
FROM b AS two
FROM one AS three
COPY --from=0 /x /
FROM c
COPY --from=TWO /x /
FROM d AS never
"""
    assert images(text, target="three") == ["a"]
    assert images(text, target="3") == ["b", "c"]
    assert images(text) == ["d"]
    assert images(text, target="no-such-stage") == []


def test_a_stage_may_be_called_as_the_image_that_it_is_from():
    assert images("FROM busybox AS busybox\nFROM busybox") == ["busybox"]


def test_arguments_from_before_the_first_stage_and_from_the_caller():
    text = (
        "ARG TAG=3\nARG NAME=alpine:${TAG}\nFROM ${NAME}\nARG TAG\nARG OWN=tools:$TAG\nCOPY --from=$OWN /a /b"
    )
    assert images(text) == ["alpine:3", "tools:3"]
    assert images(text, TAG="4") == ["alpine:4", "tools:4"]
    assert images(text, NAME="debian") == ["debian", "tools:3"]
    assert images("FROM base:$TARGETARCH-${TARGETPLATFORM}") == ["base:amd64-linux/amd64"]


def test_an_argument_of_a_stage_is_unknown_to_the_next_ones_from():
    assert images("FROM a\nARG X=b\nFROM a${X}c") == ["ac"]


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("$A-${A}", "1-1"),
        ("${B:-x}${B-y}", "x"),
        ("${A:+x}${NO:+y}${B+z}", "xz"),
        ("${NO:-${A}}", "1"),
        ("'$A'\"$A\"\\$A", "$A1$A"),
        ("a$", "a$"),
        ("${A", None),
        ("${A?x}", None),
        ("'a", None),
        ("${}", None),
    ],
)
def test_variables_in_a_word(word: str, expanded: str | None):
    assert expand(word, {"A": "1", "B": ""}) == expanded


LINES = st.sampled_from([
    "FROM ", "AS x", "a:$", "${A:-", "}", "COPY --from=", "RUN --mount=from=", "<<E", "E", "\\\n", "\n", "# escape=`\n",
    "ARG A", "=", "'", '"', "$A", " ",
])  # fmt: skip


@given(st.lists(LINES, max_size=40).map("".join) | st.text(max_size=200))
def test_no_text_is_too_strange(text: str):
    for image in images(text, A="b"):
        assert image
        assert image != "scratch"


def test_a_few_lines_do_not_grow_into_more_than_a_name_has_letters():
    doubled = "".join(f"ARG a{number}=$a{number - 1}$a{number - 1}\n" for number in range(1, 21))
    assert images(f"ARG a0={'x' * 16}\n{doubled}FROM $a20\n") == []
    assert images(f"ARG a={'x' * 400}\nFROM b\nARG a\n" + f"COPY --from={'$a' * 3} / /\n") == ["b"]


def test_variables_are_bounded_together():
    many = "".join(f"ARG a{number}=$a0\n" for number in range(1, 21))
    assert images(f"ARG a0={'x' * 60000}\n{many}FROM ${{a1:+alpine}}\n") == ["alpine"]
    assert images(f"ARG a0={'x' * 60000}\n{many}FROM ${{a20:+alpine}}\n") == []


def test_no_more_stages_are_read_than_anybody_writes():
    text = "".join(f"FROM image{number} AS s{number}\n" for number in range(2000))
    assert images(text, target="s999") == ["image999"]
    assert images(text, target="s1000") == []


def test_a_number_that_no_stage_has_is_no_stage():
    digits = "1" * 5000
    assert images(f"FROM a\nCOPY --from={digits} / /\n", target=digits) == []
    assert images(f"FROM a\nCOPY --from={digits} / /\n") == ["a"]


def test_here_documents_without_an_end_are_looked_for_once():
    assert images("FROM a\n" + "RUN cat <<E <<-F\n" * 20_000 + "COPY --from=b / /") == ["a", "b"]


def test_a_line_that_goes_on_many_times():
    assert images("FROM a\nRUN x" + "\\\ny" * 300 + "\\\n\nCOPY --from=no / /\nCOPY --from=b / /") == [
        "a",
        "b",
    ]
