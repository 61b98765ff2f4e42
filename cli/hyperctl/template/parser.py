# SPDX-License-Identifier: Apache-2.0
"""Text of a template -> its tree."""

import json
import re
from dataclasses import dataclass
from typing import Any

from hyperctl.template.functions import FUNCTIONS, TemplateError

MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    spaced: bool  # white space before it: `.A.B` is one operand, `.A .B` are two


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class Name:
    """A function."""

    name: str


@dataclass(frozen=True, slots=True)
class Variable:
    name: str  # "$" is the whole data, "." the current value


@dataclass(frozen=True, slots=True)
class Chain:
    base: "Operand"
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    commands: tuple[tuple["Operand", ...], ...]
    variables: tuple[str, ...] = ()
    declares: bool = True  # `:=`, else `=`


Operand = Literal | Name | Variable | Chain | Pipeline


@dataclass(frozen=True, slots=True)
class Block:
    """if, with or range; ``otherwise`` when the value is empty."""

    keyword: str
    pipeline: Pipeline
    body: tuple["Node", ...]
    otherwise: tuple["Node", ...]


Node = str | Pipeline | Block

_OPEN = re.compile(r"\{\{(?:-(?=\s))?")
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<close>(?:(?<=\s)-)?\}\})|(?P<comment>/\*.*?\*/)
    |(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)|(?P<char>'(?:\\.|[^'\\\n])+')
    |(?P<number>[+-]?\d+(?:\.\d+)?)|(?P<variable>\$\w*)|(?P<field>\.[A-Za-z_]\w*)|(?P<dot>\.)
    |(?P<name>[A-Za-z_]\w*)|(?P<mark>:=|[=|(),])""",
    re.VERBOSE | re.DOTALL,
)
KEYWORDS = frozenset({"if", "else", "end", "range", "with"})
REFUSED = frozenset({"define", "template", "block", "break", "continue"})


def _split(text: str) -> list[str | list[Token]]:
    """Text and actions in turn, with the trimming that `{{-` and `-}}` ask for already done."""
    pieces: list[str | list[Token]] = []
    position, trim_left = 0, False
    while (start := _OPEN.search(text, position)) is not None:
        before = text[position : start.start()]
        before = before.lstrip() if trim_left else before
        pieces.append(before.rstrip() if start.group().endswith("-") else before)
        tokens: list[Token] = []
        position, spaced = start.end(), False
        while True:
            match = _TOKEN.match(text, position)
            if match is None:
                raise TemplateError(
                    f"cannot read {text[position : position + 20]!r}"
                    if position < len(text)
                    else "an action is not closed with }}"
                )
            position, kind = match.end(), match.lastgroup or ""
            if kind == "close":
                break
            if kind not in {"space", "comment"}:
                tokens.append(Token(kind, match.group(), spaced))
            spaced = kind == "space"
        trim_left = match.group().startswith("-")
        pieces.append(tokens)
    rest = text[position:]
    pieces.append(rest.lstrip() if trim_left else rest)
    return pieces


class Parser:
    def __init__(self, text: str) -> None:
        self._pieces = _split(text)
        self._tokens: list[Token] = []
        self._depth = 0

    def parse(self) -> tuple[Node, ...]:
        nodes, ending = self._body()
        if ending:
            raise TemplateError(f"{{{{{ending}}}}} without an if, range or with")
        return nodes

    def _body(self) -> tuple[tuple[Node, ...], str]:
        """Nodes up to `else`, `end` or the end of the text; that word, or "". Its other tokens stay to be read."""
        nodes: list[Node] = []
        while self._pieces:
            piece = self._pieces.pop(0)
            if isinstance(piece, str):
                if piece:
                    nodes.append(piece)
                continue
            self._tokens = piece
            if not piece:  # a comment
                continue
            word = piece[0].text if piece[0].kind == "name" else ""
            if word in REFUSED:
                raise TemplateError(f"{{{{{word}}}}} is not supported")
            if word in KEYWORDS:
                self._tokens.pop(0)
            if word in {"else", "end"}:
                if word == "end":
                    self._expect_end()
                return tuple(nodes), word
            nodes.append(self._block(word) if word in KEYWORDS else self._whole_pipeline())
        return tuple(nodes), ""

    def _block(self, keyword: str) -> Block:
        self._deeper()
        pipeline = self._whole_pipeline()
        if pipeline.variables and len(pipeline.variables) > 1 and keyword != "range":
            raise TemplateError(f"too many variables in {{{{{keyword}}}}}")
        body, ending = self._body()
        otherwise: tuple[Node, ...] = ()
        if ending == "else":
            if self._tokens and self._tokens[0].text == "if" and keyword == "if":
                self._tokens.pop(0)
                otherwise, ending = (self._block("if"),), "end"
            else:
                self._expect_end()
                otherwise, ending = self._body()
        if ending != "end":
            raise TemplateError(f"{{{{{keyword}}}}} without {{{{end}}}}")
        self._depth -= 1
        return Block(keyword, pipeline, body, otherwise)

    def _whole_pipeline(self) -> Pipeline:
        pipeline = self._pipeline()
        self._expect_end()
        return pipeline

    def _expect_end(self) -> None:
        if self._tokens:
            raise TemplateError(f"unexpected {self._tokens[0].text!r}")

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateError("nested too deeply")

    def _peek(self, *texts: str) -> bool:
        return bool(self._tokens) and self._tokens[0].kind == "mark" and self._tokens[0].text in texts

    def _pipeline(self) -> Pipeline:
        variables, declares = self._declaration()
        commands = [self._command()]
        while self._peek("|"):
            self._tokens.pop(0)
            commands.append(self._command())
        return Pipeline(tuple(commands), variables, declares)

    def _declaration(self) -> tuple[tuple[str, ...], bool]:
        kinds = [(token.kind, token.text) for token in self._tokens[:4]]
        match kinds:
            case [("variable", first), ("mark", (":=" | "=") as mark), *_]:
                taken: tuple[str, ...] = (first,)
            case [("variable", first), ("mark", ","), ("variable", second), ("mark", ":=" as mark)]:
                taken = (first, second)
            case _:
                return (), True
        del self._tokens[: 2 * len(taken)]
        return taken, mark == ":="

    def _command(self) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while self._tokens and not self._peek("|", ")"):
            operands.append(self._operand())
        if not operands:
            raise TemplateError("missing value")
        return tuple(operands)

    def _operand(self) -> Operand:
        token = self._tokens.pop(0)
        base = self._term(token)
        fields: list[str] = [token.text[1:]] if token.kind == "field" else []
        while self._tokens and self._tokens[0].kind == "field" and not self._tokens[0].spaced:
            fields.append(self._tokens.pop(0).text[1:])
        return Chain(base, tuple(fields)) if fields else base

    def _term(self, token: Token) -> Operand:
        match token.kind, token.text:
            case (("field" | "dot"), _):
                return Variable(".")
            case "variable", name:
                return Variable(name)
            case "string" | "char", text:
                return Literal(_unquote(text))
            case "number", text:
                return Literal(float(text) if "." in text else int(text))
            case "name", "true" | "false" | "nil":
                return Literal({"true": True, "false": False, "nil": None}[token.text])
            case "name", name:
                if name not in FUNCTIONS:
                    raise TemplateError(f"function {name!r} is not supported")
                return Name(name)
            case "mark", "(":
                self._deeper()
                pipeline = self._pipeline()
                if not self._peek(")"):
                    raise TemplateError("a parenthesis is not closed")
                self._tokens.pop(0)
                self._depth -= 1
                return pipeline
        raise TemplateError(f"unexpected {token.text!r}")


def _unquote(text: str) -> str | int:
    if text.startswith("`"):
        return text[1:-1]
    try:
        value = json.loads(f'"{text[1:-1]}"' if text.startswith("'") else text)
    except ValueError:
        raise TemplateError(f"cannot read {text}") from None
    if text.startswith("'"):
        if len(value) != 1:
            raise TemplateError(f"cannot read {text}")
        return ord(value)
    return str(value)
