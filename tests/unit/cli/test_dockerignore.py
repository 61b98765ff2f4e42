# SPDX-License-Identifier: Apache-2.0
"""`.dockerignore`, held to the cases of moby/patternmatcher's own tests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperctl.dockerignore import Ignored
from hyperctl.errors import InvalidError


@pytest.mark.parametrize(
    ("pattern", "path", "out"),
    [
        ("**", "file", True),
        ("**", "dir/file", True),
        ("**/", "file", True),
        ("**/**", "dir/file", True),
        ("dir/**", "dir/file", True),
        ("dir/**", "dir/dir2/file", True),
        ("**/dir", "dir", True),
        ("**/dir", "dir/file", True),
        ("**/dir2/*", "dir/dir2/file", True),
        ("**/dir2/**", "dir/dir2/dir2/file", True),
        ("**file", "dir/file", True),
        ("**/file", "dir/dir/file", True),
        ("**/file*", "dir/dir/file.txt", True),
        ("**/file*txt", "dir/dir/file.txt", True),
        ("**/**/*.txt", "dir/dir/file.txt", True),
        ("**/**/*.txt2", "dir/dir/file.txt", False),
        ("**/*.txt", "file.txt", True),
        ("a**/*.txt", "a/file.txt", True),
        ("a**/*.txt", "a/dir/file.txt", True),
        ("a/*.txt", "a/dir/file.txt", False),
        ("a/*.txt**", "a/file.txt", True),
        ("a[b-d]e", "ae", False),
        ("a[b-d]e", "ace", True),
        ("a[^b-d]e", "ace", False),
        ("a[^b-d]e", "aze", True),
        (".*", ".foo", True),
        (".*", "foo", False),
        ("abc.def", "abcdef", False),
        ("abc?def", "abcZdef", True),
        ("abc?def", "abcdef", False),
        ("a\\\\", "a\\", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "acb", False),
        ("**/foo/bar", "foo/bar", True),
        ("**/foo/bar", "dir/dir2/foo/bar", True),
        ("abc/**", "abc", False),
        ("abc/**", "abc/def/ghi", True),
        ("**/.foo", "bar/.foo", True),
        ("./bar/.*", "bar/.foo", True),
        ("/bar", "bar", True),
        ("bar/", "bar/a", True),
        ("a(b)c/def", "a(b)c/def", True),
        ("a{b}|c", "a{b}|c", True),
        ("a.|)$(}+{bc", "a.|)$(}+{bc", True),
        ("docs\n!docs/README.md", "docs/README.md", False),
        ("docs\n!docs/README.md", "docs/other", True),
        ("!docs\ndocs", "docs/x", True),
        ("*\n!*.c\nx.c", "y.c", False),
        ("*\n!*.c\nx.c", "x.c", True),
        ("# comment\n\n  spaced  ", "spaced", True),
        ("\ufefffirst", "first", True),
    ],
)
def test_a_path_is_left_out_or_not(pattern: str, path: str, *, out: bool):
    assert Ignored(pattern).leaves_out(path) is out


@pytest.mark.parametrize(
    ("text", "directory", "may"),
    [
        ("docs\n!docs/README.md", "docs", True),
        ("docs\n!docs/a/README.md", "docs/a", True),
        ("docs\n!docs/a/README.md", "docs/b", False),
        ("docs", "docs", False),
        ("*\n!**/*.c", "any/where", True),
        ("*\n!src/*.c", "src", True),
        ("*\n!src/*.c", "other", False),
    ],
)
def test_a_directory_is_entered_only_when_something_in_it_may_be_wanted(
    text: str, directory: str, *, may: bool
):
    assert Ignored(text).may_take_back_below(directory) is may


@given(st.lists(st.sampled_from(["a", "b", "*", "**", "!a/b", "a/*", "!**/b", "a/b/c"]), max_size=6))
def test_what_is_not_entered_holds_nothing_that_is_wanted(lines: list[str]):
    ignored = Ignored("\n".join(lines))
    for directory in ("a", "b", "a/b"):
        if ignored.leaves_out(directory) and not ignored.may_take_back_below(directory):
            for below in ("a", "b", "c", "b/c"):
                assert ignored.leaves_out(f"{directory}/{below}")


@pytest.mark.parametrize("text", ["!", "[", "a[]b"])
def test_what_is_no_pattern_is_refused(text: str):
    with pytest.raises(InvalidError):
        Ignored(text)
