# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.image.changes import apply_changes
from hyperd.image.healthcheck import parse_duration
from hyperd.image.words import expand, split_words

SECOND = 10**9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('CMD ["a", "b c"]', {"Cmd": ["a", "b c"]}),
        ("cmd echo $HOME 'x'", {"Cmd": ["/bin/sh", "-c", "echo $HOME 'x'"]}),
        ("CMD []", {"Cmd": []}),
        ("CMD [not json", {"Cmd": ["/bin/sh", "-c", "[not json"]}),
        ("ENTRYPOINT serve", {"Entrypoint": ["/bin/sh", "-c", "serve"]}),
        ('ENV A=1 B=\'x y\' C="p \\" q" D=a\\ b E=', {"Env": ["A=1", "B=x y", 'C=p " q', "D=a b", "E="]}),
        ("ENV A one two  three", {"Env": ["A=one two  three"]}),
        ('ENV A "one two"', {"Env": ["A=one two"]}),
        ("LABEL a.b=c 'x y'=\"z\nw\"", None),
        ("LABEL a.b=c 'x y'=\"z\"", {"Labels": {"a.b": "c", "x y": "z"}}),
        ("LABEL key some value", {"Labels": {"key": "some value"}}),
        ("EXPOSE 80 443/TCP 53/udp", {"ExposedPorts": {"80/tcp": {}, "443/tcp": {}, "53/udp": {}}}),
        ("EXPOSE 8000-8002/udp", {"ExposedPorts": {"8000/udp": {}, "8001/udp": {}, "8002/udp": {}}}),
        ("USER app:staff", {"User": "app:staff"}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ('VOLUME ["/a b"]', {"Volumes": {"/a b": {}}}),
        ("WORKDIR /a/../b/", {"WorkingDir": "/b"}),
        ("WORKDIR a", {"WorkingDir": "/a"}),
        ("STOPSIGNAL SIGTERM", {"StopSignal": "SIGTERM"}),
        ("STOPSIGNAL RTMIN+3", {"StopSignal": "RTMIN+3"}),
        ("STOPSIGNAL 9", {"StopSignal": "9"}),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
        ("HEALTHCHECK CMD curl x", {"Healthcheck": {"Test": ["CMD-SHELL", "curl x"]}}),
        (
            'HEALTHCHECK --interval=1m30s --timeout=0.5s --retries=3 --start-period=1h CMD ["a"]',
            {
                "Healthcheck": {
                    "Test": ["CMD", "a"],
                    "Interval": 90 * SECOND,
                    "Timeout": SECOND // 2,
                    "Retries": 3,
                    "StartPeriod": 3600 * SECOND,
                }
            },
        ),
        ("# a comment\n\nUSER \\\n  app", {"User": "app"}),
        ("USER a\nWORKDIR /b", {"User": "a", "WorkingDir": "/b"}),
    ],
)
def test_a_change_does_what_docker_does(change, expected):
    if expected is None:
        with pytest.raises(InvalidError):
            apply_changes({}, [change])
    else:
        assert apply_changes({}, [change]) == expected


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("ONBUILD RUN x", UnsupportedError),
        ("RUN x", UnsupportedError),
        ("FROM x", UnsupportedError),
        ("NOTHING x", InvalidError),
        ("CMD", InvalidError),
        ("CMD [1]", InvalidError),
        ("CMD --flag", InvalidError),
        ("ENV A", InvalidError),
        ("ENV =x", InvalidError),
        ("ENV A=1 B", InvalidError),
        ("ENV A='x", InvalidError),
        ("ENV A=${B", InvalidError),
        ("ENV A=${B%x}", UnsupportedError),
        ("ENV A=${B:?must be}", InvalidError),
        ("LABEL x", InvalidError),
        ("EXPOSE 0", InvalidError),
        ("EXPOSE 65536", InvalidError),
        ("EXPOSE 9-8", InvalidError),
        ("EXPOSE 80/icmp", InvalidError),
        ("EXPOSE 80:80", InvalidError),
        ("EXPOSE ²", InvalidError),
        ('VOLUME [""]', InvalidError),
        ("WORKDIR $UNSET", InvalidError),
        ("STOPSIGNAL 65", InvalidError),
        ("STOPSIGNAL please stop", InvalidError),
        ("HEALTHCHECK", InvalidError),
        ("HEALTHCHECK NONE x", InvalidError),
        ("HEALTHCHECK --interval=1 CMD x", InvalidError),
        ("HEALTHCHECK --interval=1us CMD x", InvalidError),
        ("HEALTHCHECK --retries=0 CMD x", InvalidError),
        ("HEALTHCHECK --color=red CMD x", InvalidError),
        ("HEALTHCHECK CMD []", InvalidError),
        ("HEALTHCHECK sleep 1", InvalidError),
        ("USER a\x00b", InvalidError),
    ],
)
def test_nonsense_is_refused_and_named(change, kind):
    with pytest.raises(kind) as caught:
        apply_changes({}, [change])
    assert caught.value.subject


def test_an_entrypoint_takes_the_bases_command_away_but_not_one_beside_it():
    base = {"Cmd": ["old"], "Entrypoint": ["e"]}
    assert apply_changes(base, ['ENTRYPOINT ["n"]']) == {"Entrypoint": ["n"]}
    assert apply_changes(base, ["CMD []", 'CMD ["c"]', 'ENTRYPOINT ["n"]']) == {
        "Cmd": ["c"],
        "Entrypoint": ["n"],
    }
    assert apply_changes(base, ['ENTRYPOINT ["n"]', 'CMD ["c"]']) == {"Cmd": ["c"], "Entrypoint": ["n"]}
    assert apply_changes(base, ["ENTRYPOINT []"]) == {"Cmd": ["old"], "Entrypoint": []}
    assert apply_changes(base, ['CMD ["c"]'])["Entrypoint"] == ["e"]


def test_changes_add_to_what_the_base_has_and_leave_the_base_alone():
    base: dict[str, Any] = {
        "Env": ["PATH=/bin", "A=1"],
        "Labels": {"a": "1"},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": None,
        "Shell": ["/bin/bash", "-c"],
        "WorkingDir": "/srv",
        "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5},
        "Unknown": [1],
    }
    before = json.dumps(base)
    changes = ["ENV PATH=$PATH:/x A=${A:-9}${B:-2}${A:+3}", "LABEL b=2", "EXPOSE 81", "VOLUME /v"]
    changes += ["CMD run", "WORKDIR app/$A", "HEALTHCHECK CMD y", "ENV LATER=$A"]
    assert apply_changes(base, changes) == {
        "Env": ["PATH=/bin:/x", "A=123", "LATER=123"],
        "Labels": {"a": "1", "b": "2"},
        "ExposedPorts": {"80/tcp": {}, "81/tcp": {}},
        "Volumes": {"/v": {}},
        "Shell": ["/bin/bash", "-c"],
        "WorkingDir": "/srv/app/123",
        "Healthcheck": {"Test": ["CMD-SHELL", "y"], "Interval": 5},
        "Unknown": [1],
        "Cmd": ["/bin/bash", "-c", "run"],
    }
    assert json.dumps(base) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'$A'", "$A"),
        ('"$A"', "1"),
        ("\\$A", "$A"),
        ('"\\$A \\n"', "$A \\n"),
        ("$A$B.$", "1.$"),
        ("${A}b", "1b"),
        ("${B-x${A}}", "x1"),
        ("${E-x}${E:-y}", "y"),
        ("${B:-'a b'}", "a b"),
        ("a'b'\"c\"", "abc"),
        ("$1x", "x"),
    ],
)
def test_variables_and_quotes(text, expected):
    assert expand(text, {"A": "1", "E": ""}) == expected


def test_words_keep_their_quotes():
    assert split_words("  a=1 b='x y' c=\"p \\\" q\" d\\ e '' ") == [
        "a=1",
        "b='x y'",
        'c="p \\" q"',
        "d\\ e",
        "''",
    ]


def test_nor_within_quotes():
    """Where what is too long is never put together."""
    with pytest.raises(InvalidError, match="too long"):
        expand('"' + "$A" * 5000 + '"', {"A": "x" * 100_000})


def test_variables_cannot_grow_without_end():
    changes = ["ENV A=" + "x" * 1000] + ["ENV A=" + "$A" * 10] * 10
    with pytest.raises(InvalidError, match="too long"):
        apply_changes({}, changes)


def test_deep_variables_are_refused():
    with pytest.raises(InvalidError, match="too deep"):
        expand("${A:-" * 5000 + "}" * 5000, {})


def test_too_many_changes_are_refused():
    with pytest.raises(InvalidError, match="more than"):
        apply_changes({}, ["USER a"] * 1001)
    with pytest.raises(InvalidError, match="more than"):
        apply_changes({}, ["USER " + "a" * (1 << 18)])


def test_durations():
    assert parse_duration("1h2m3.5s4ms5us6ns") == 3723_504_005_006
    for wrong in ("", "1", "s", "1x", "-1s", "1s ", "9999999999h"):
        with pytest.raises(InvalidError):
            parse_duration(wrong)


LINES = st.builds(
    lambda word, rest: f"{word} {rest}",
    st.sampled_from("CMD ENTRYPOINT ENV EXPOSE LABEL USER VOLUME WORKDIR STOPSIGNAL HEALTHCHECK".split()),
    st.text(alphabet="aA=$'\"\\ {}:-+[],/019.\n#é", max_size=60),
)


@given(st.lists(LINES | st.text(max_size=40), max_size=5))
def test_any_text_is_a_config_or_an_error_of_ours(changes):
    try:
        config = apply_changes({"Env": ["A=1"], "Cmd": ["x"]}, changes)
    except HyperError:
        return
    json.dumps(config)
    assert all("=" in item for item in config["Env"])


@given(st.text(max_size=50).filter(lambda text: "'" not in text and "\n" not in text))
def test_what_stands_in_single_quotes_comes_out_as_it_is(text):
    assert expand(f"'{text}'", {"A": "1"}) == text


@given(st.lists(st.text(alphabet="ab \"'\\$", max_size=10), min_size=1, max_size=4))
def test_quoted_words_come_apart_as_they_were_put_together(values):
    quoted = [
        '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"' for value in values
    ]
    assert [expand(word, {}) for word in split_words(" ".join(quoted))] == values
