# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperctl import options
from hyperctl.detach import DetachScanner, parse_detach_keys
from hyperctl.errors import CliError, InvalidError
from hyperctl.moments import SECOND_NS, parse_duration, parse_moment
from hyperctl.names import familiar_name, split_reference, with_default_tag
from hyperctl.tree import rewrite_switches


def refusal(work):
    try:
        work()
    except CliError as error:
        return error
    return None


UNITS = {"": 1, "b": 1, "k": 2**10, "KB": 2**10, "m": 2**20, "MiB": 2**20, "g": 2**30, "t": 2**40, "P": 2**50}


@given(st.integers(0, 1000), st.sampled_from(sorted(UNITS)))
def test_a_size_is_its_number_times_its_unit(number, unit):
    assert options.parse_size("-m", f"{number}{unit}") == number * UNITS[unit]


@pytest.mark.parametrize(("text", "size"), [("1.5g", 3 * 2**29), ("0.5k", 512), ("32 MB", 32 << 20)])
def test_a_size_may_have_a_fraction_and_a_space(text, size):
    assert options.parse_size("-m", text) == size


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_clear_error(text):
    error = refusal(lambda: options.parse_size("--memory", text))
    assert error is None or (error.subject, error.exit_status) == ("--memory", 2)


PARSERS = [
    options.parse_ulimit,
    options.parse_cpus,
    options.parse_host,
    options.parse_dns_server,
    parse_detach_keys,
    lambda text: options.parse_env([text], {}),
    lambda text: options.parse_env_lines(text, source="file"),
    lambda text: options.parse_pairs("-l", [text]),
    lambda text: options.parse_sysctls([text]),
    lambda text: options.parse_tmpfs([text]),
    lambda text: options.parse_security_options([text]),
    lambda text: options.parse_filters([text], ("name",)),
    lambda text: options.parse_integer("-n", text),
    lambda text: options.parse_stop_timeout("-t", text),
    lambda text: options.parse_bool("-f", text),
    lambda text: parse_moment("--since", text, now_ns=10**18),
]
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="0123456789.:=-+abcnofile,ctrl-^[]TZhms\n# \t", max_size=30),
)


@pytest.mark.parametrize("parse", PARSERS)
@given(text=TEXTS)
def test_no_text_breaks_a_parser(parse, text):
    error = refusal(lambda: parse(text))
    assert error is None or (error.brief and error.exit_status == 2)


@given(st.sampled_from(["nofile", "nproc", "core"]), st.integers(-1, 10**9), st.integers(-1, 10**9))
def test_a_ulimit_is_soft_below_hard(name, soft, hard):
    text = f"{name}={soft}:{hard}"
    if hard == -1 or -1 < soft <= hard:
        assert options.parse_ulimit(text) == options.UlimitValue(name, soft, hard)
    else:
        with pytest.raises(InvalidError, match="soft limit"):
            options.parse_ulimit(text)


def test_a_ulimit_without_a_hard_limit_has_the_same():
    assert options.parse_ulimit("nofile=7") == options.UlimitValue("nofile", 7, 7)
    with pytest.raises(InvalidError, match="NAME one of"):
        options.parse_ulimit("files=7")


NAMES = st.text(alphabet="ABCxyz_0", min_size=1, max_size=5)
VALUES = st.text(alphabet="ab =#'\"\\$1\t", max_size=10)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_an_env_file_keeps_values_verbatim(variables):
    lines = [f"{name}={value}" for name, value in variables]
    text = "# a comment\n\n" + "\r\n".join(lines)
    assert options.parse_env_lines(text, source="f") == lines


@pytest.mark.parametrize(
    ("text", "message"), [("A B=c", "white space"), ("\n=x", "line 2: no variable name")]
)
def test_an_env_file_is_refused_with_its_line(text, message):
    with pytest.raises(InvalidError, match=message):
        options.parse_env_lines(text, source="f")


def test_env_takes_from_the_environment_and_flags_win_over_files(tmp_path):
    file = tmp_path / "env"
    file.write_bytes(b"\xef\xbb\xbfA=file\nB\nC\n")
    environ = {"B": "from environ", "E": "e"}
    assert options.collect_env([str(file)], ["A=flag", "D=a=b", "E", "GONE"], environ) == [
        "A=flag",
        "B=from environ",
        "D=a=b",
        "E=e",
    ]


@pytest.mark.parametrize("name", ["absent", "binary"])
def test_an_env_file_that_cannot_be_read_says_so(tmp_path, name):
    (tmp_path / "binary").write_bytes(b"A=\xff")
    with pytest.raises(InvalidError) as caught:
        options.read_env_file(str(tmp_path / name))
    assert caught.value.subject.endswith(name)


def test_hosts_may_be_written_in_every_form():
    assert options.parse_host("db:10.0.0.1") == "db:10.0.0.1"
    assert options.parse_host("db=::1") == "db:::1"
    assert options.parse_host("db:[fe80::1]") == "db:fe80::1"


def test_security_options_add_up():
    both = options.parse_security_options(["no-new-privileges", "seccomp=unconfined"])
    assert both == options.SecurityOptions(no_new_privileges=True, seccomp_unconfined=True)
    assert options.parse_security_options(["no-new-privileges:false"]) == options.SecurityOptions()
    with pytest.raises(InvalidError, match="apparmor"):
        options.parse_security_options(["apparmor=x"])


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_is_the_sum_of_its_terms(hours, minutes, seconds, millis):
    text = f"{hours}h{minutes}m{seconds}s{millis}ms"
    total_ms = ((hours * 60 + minutes) * 60 + seconds) * 1000 + millis
    assert parse_duration(text) == total_ms * 1_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", (1_000_000_000 - 600, 0)),
        ("1.5s", (999_999_998, 500_000_000)),
        ("1700000000", (1_700_000_000, 0)),
        ("1700000000.25", (1_700_000_000, 250_000_000)),
        ("2026-01-02T15:04:05Z", (1_767_366_245, 0)),
        ("2026-01-02T15:04:05.123456789Z", (1_767_366_245, 123_456_789)),
        ("2026-01-02T17:04:05+02:00", (1_767_366_245, 0)),
        ("2026-01-02Z", (1_767_312_000, 0)),
    ],
)
def test_moments(text, expected):
    assert parse_moment("--since", text, now_ns=1_000_000_000 * SECOND_NS) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "5 m"])
def test_what_is_no_moment(text):
    with pytest.raises(InvalidError):
        parse_moment("--since", text, now_ns=0)


KEYS = st.lists(st.sampled_from(["a", "b", "ctrl-a", "ctrl-p", "ctrl-q", "ctrl-]"]), min_size=1, max_size=4)


@given(KEYS, st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_detach_keys_are_found_however_the_input_is_cut(names, data, cuts):
    keys = parse_detach_keys(",".join(names))
    data = data.replace(b"x", keys)
    scanner, passed = DetachScanner(keys), b""
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        passed += scanner.feed(data[start:end])
    assert scanner.detached == (keys in data)
    if scanner.detached:
        assert passed == data[: data.index(keys)]
    else:
        held = len(data) - len(passed)
        assert 0 <= held < len(keys)
        assert passed + keys[:held] == data


def test_detach_keys_have_a_default_and_refuse_nonsense():
    assert parse_detach_keys("") == parse_detach_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    with pytest.raises(InvalidError, match="'ctrl-1'"):
        parse_detach_keys("ctrl-1")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("alpine", ("alpine", "", "")),
        ("alpine:3", ("alpine", "3", "")),
        ("localhost:5000/a/b", ("localhost:5000/a/b", "", "")),
        ("localhost:5000/a:1@sha256:ab", ("localhost:5000/a", "1", "sha256:ab")),
    ],
)
def test_references_are_split_at_the_right_colon(reference, parts):
    assert split_reference(reference) == parts


def test_names_as_people_write_them():
    assert familiar_name("docker.io/library/alpine:3") == "alpine:3"
    assert familiar_name("docker.io/me/alpine") == "me/alpine"
    assert familiar_name("example.test/library/alpine") == "example.test/library/alpine"
    assert with_default_tag("alpine") == "alpine:latest"
    assert with_default_tag("docker-archive:/tmp/a.tar") == "docker-archive:/tmp/a.tar"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--rm=true image", "--rm image"),
        ("--rm=false image --rm=true", "image --rm=true"),
        ("--name --rm=true image", "--name --rm=true image"),
        ("-ite x --rm=false image", "-ite x image"),
        ("-ex --rm=false image", "-ex image"),
        ("--sig-proxy=false image", "--no-sig-proxy image"),
        ("--rm=maybe image", "--rm=maybe image"),
        ("-- --rm=true", "-- --rm=true"),
    ],
)
def test_switches_with_a_value(words, expected):
    switches = {"--rm", "-i", "-t", "--sig-proxy", "--no-sig-proxy"}
    rewritten = rewrite_switches(words.split(), switches, {"--name", "-e"}, stop_at_first=True)
    assert rewritten == expected.split()
