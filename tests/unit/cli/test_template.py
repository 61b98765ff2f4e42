# SPDX-License-Identifier: Apache-2.0
"""Expected texts are what Go's text/template prints for the same data."""

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperctl.template import OpenMap, Template, TemplateError

DATA = {
    "Name": "/web",
    "Id": "abc",
    "Running": True,
    "Paused": False,
    "Code": 137,
    "Load": 1.5,
    "Nothing": None,
    "Empty": [],
    "Args": ["ls", "-l", "a b"],
    "State": {"Status": "running", "Pid": 7},
    "Labels": OpenMap({"b": "2", "a": "1"}),
    "Nets": OpenMap({"bridge": {"IP": "10.0.0.1"}, "none": {"IP": ""}}),
    "Label": lambda key: f"<{key}>",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain }} text", "plain }} text"),
        ("{{.Name}}", "/web"),
        ("{{ .State.Status }}-{{.State.Pid}}", "running-7"),
        (
            "{{.Args}} {{.Labels}} {{.Running}} {{.Load}} {{.Nothing}}",
            "[ls -l a b] map[a:1 b:2] true 1.5 <no value>",
        ),
        ("{{json .State}} {{json .Args}}", '{"Status":"running","Pid":7} ["ls","-l","a b"]'),
        ("{{json .Nothing}}{{json .Running}}", "nulltrue"),
        ("{{upper .Id}}{{.Id | upper | lower}}", "ABCabc"),
        ('{{join .Args ","}}', "ls,-l,a b"),
        ('{{join (split "a-b" "-") "+"}}', "a+b"),
        ("{{title `some words`}}", "Some Words"),
        ("{{len .Args}} {{len .Id}} {{len .Labels}}", "3 3 2"),
        ("{{println .Id 1}}", "abc 1\n"),
        ('{{print "a" 1 2 "b" .Running}}', "a1 2btrue"),
        (
            '{{printf "%s|%5d|%-5s|%05d|%v|%q|%.1f%%" .Id 7 "x" 42 .Args "q" 1.25}}',
            'abc|    7|x    |00042|[ls -l a b]|"q"|1.2%',
        ),
        ("{{index .Args 1}} {{index .Labels `a`}} [{{index .Labels `z`}}]", "-l 1 []"),
        ("{{(index .Nets `bridge`).IP}}", "10.0.0.1"),
        ("{{slice .Id 1}}{{slice .Id 0 1}}", "bca"),
        ("{{truncate .Name 2}}{{pad .Id 1 2}}|", "/w abc  |"),
        ("{{if .Running}}up{{end}}", "up"),
        ("{{if .Paused}}a{{else if .Empty}}b{{else if eq .Code 1 137}}c{{else}}d{{end}}", "c"),
        ("{{if and .Running (not .Paused)}}yes{{end}}", "yes"),
        ('{{or .Nothing .Id}} {{and .Running ""}}', "abc "),
        ("{{if lt .Code 138}}{{if ge .Code 137}}x{{end}}{{end}}", "x"),
        ('{{if ne .Id "abc"}}x{{else}}y{{end}}', "y"),
        ("{{range .Args}}<{{.}}>{{end}}", "<ls><-l><a b>"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range $i, $a := .Args}}{{$i}}={{$a}};{{end}}", "0=ls;1=-l;2=a b;"),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "a=1 b=2 "),
        ("{{range $name, $net := .Nets}}{{$name}}:{{$net.IP}} {{end}}", "bridge:10.0.0.1 none: "),
        ("{{range .Args}}{{$.Id}}{{end}}", "abcabcabc"),
        ("{{with .State}}{{.Pid}}{{end}}{{with .Nothing}}x{{else}}y{{end}}", "7y"),
        ("{{with $s := .State}}{{$s.Status}}{{end}}", "running"),
        ("{{$x := 1}}{{range .Args}}{{$x = .}}{{end}}{{$x}}", "a b"),
        ("{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21"),
        ("a  {{- .Id -}}  b {{- /* gone */ -}} c", "aabcbc"),
        ("{{/* a comment with }} in it */}}x", "x"),
        ('{{"}}"}}{{`{{`}}', "}}{{"),
        ('{{"tab\\there"}}', "tab\there"),
        ("{{.Labels.a}}{{.Labels.zzz}}", "1<no value>"),
        ('{{.Label "team"}}', "<team>"),
        ("{{-1}} {{3.5}} {{'a'}} {{nil | json}}", "-1 3.5 97 null"),
        ("{{.}}", None),
    ],
)
def test_templates_render_as_in_go(text, expected):
    rendered = Template(text).render(DATA)
    if expected is not None:
        assert rendered == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{.Missing}}", "no field 'Missing'"),
        ("{{.State.Missing}}", "there are Status, Pid"),
        ("{{.Id.Deeper}}", "no field 'Deeper'"),
        ("{{.Nothing.X}}", "no field 'X'"),
        ("{{template `x`}}", "template.* not supported"),
        ("{{define `x`}}{{end}}", "define.* not supported"),
        ("{{range .Args}}{{break}}{{end}}", "break.* not supported"),
        ("{{html .Id}}", "function 'html' is not supported"),
        ("{{if .Id}}", "if.* without .*end"),
        ("{{end}}", "without an if"),
        ("{{else}}", "without an if"),
        ("{{.Id", "not closed"),
        ("{{}}{{", "not closed"),
        ("{{.Id | }}", "missing value"),
        ("{{(.Id}}", "parenthesis"),
        ("{{$x}}", "undefined variable"),
        ("{{$x = 1}}", "undefined variable"),
        ("{{.Id 1}}", "argument"),
        ("{{join .Args}}", "join: wrong arguments"),
        ("{{index .Args 9}}", "index: wrong arguments"),
        ("{{len 5}}", "len: wrong arguments"),
        ('{{printf "%z" 1}}', "%z is not supported"),
        ('{{printf "%s"}}', "too few"),
        ('{{printf "x" 1}}', "too many"),
        ("{{range .Id}}{{end}}", "can't range"),
        ("{{upper .Code}}", "upper: wrong arguments"),
        ("{{;}}", "cannot read"),
        ("{{with .A}}{{else with .B}}{{end}}", "unexpected 'with'"),
        ("{{" + "(" * 60 + "1" + ")" * 60 + "}}", "too deeply"),
        ("{{if .Id}}" * 60 + "{{end}}" * 60, "too deeply"),
    ],
)
def test_what_cannot_be_rendered_says_so(text, message):
    with pytest.raises(TemplateError, match=message):
        Template(text).render(DATA)


@given(st.text(alphabet="{}.$|()=:-\"'`,/* \n" + string.ascii_letters + string.digits, max_size=40))
def test_no_text_breaks_it(text):
    with contextlib.suppress(TemplateError):
        Template(text).render(DATA)


PIECES = st.lists(
    st.sampled_from(
        [
            "{{if .Running}}",
            "{{range .Args}}",
            "{{with .State}}",
            "{{else}}",
            "{{end}}",
            "{{.}}",
            "{{$x := .}}",
            "{{json .}}",
            "{{len .Args}}",
            "{{$x}}",
            "{{- .Id -}}",
            " text ",
            "{{(.Id)}}",
            "{{index .Args 0 | upper}}",
        ]
    ),
    max_size=10,
)


@given(PIECES)
def test_no_combination_breaks_it(pieces):
    data = {key: value for key, value in DATA.items() if key != "Label"}
    with contextlib.suppress(TemplateError):
        Template("".join(pieces)).render(data)


@given(st.text(alphabet=string.printable.replace("{", ""), max_size=50))
def test_text_without_actions_stays_as_it_is(text):
    assert Template(text).render(DATA) == text
