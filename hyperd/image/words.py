# SPDX-License-Identifier: Apache-2.0
"""Words of a Dockerfile's line: quotes, backslashes, $VARIABLES, by BuildKit's rules. Pure.

split_words('A=1 B="x y"')  -> ['A=1', 'B="x y"']      quotes still there
expand('"$A"/b', {...})     -> '1/b'                   quotes gone, variables in
"""

from collections.abc import Callable, Mapping

from hyperd.errors import InvalidError, UnsupportedError

MAX_EXPANDED_LENGTH = 1 << 20
_MAX_DEPTH = 20


def split_words(text: str) -> list[str]:
    words, word, quote, begun = [], "", "", False
    characters = iter(text)
    for character in characters:
        if not quote and character.isspace():
            if begun:
                words.append(word)
            word, begun = "", False
            continue
        begun = True
        word += character
        if character == "\\" and quote != "'":
            word += next(characters, "")
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
    return [*words, word] if begun else words


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Raises InvalidError (unterminated, too long), UnsupportedError (a modifier that we lack)."""
    return _Expansion(text, variables).until("")


class _Expansion:
    def __init__(self, text: str, variables: Mapping[str, str], depth: int = 0) -> None:
        self._text = text
        self._at = 0
        self._variables = variables
        self._depth = depth

    def until(self, end: str) -> str:
        """Up to a character of ``end``, which is passed over, or to the end of the text where it is ""."""
        found: list[str] = []
        length = 0
        steps: dict[str, Callable[[], str]] = {
            "'": self._single,
            '"': self._double,
            "$": self._variable,
            "\\": self._escaped,
        }
        while self._at < len(self._text):
            character = self._next()
            if end and character == end:
                return "".join(found)
            piece = steps[character]() if character in steps else character
            length += len(piece)
            self._require_short(length)
            found.append(piece)
        if end:
            raise self._broken(f"a {end} is missing")
        return "".join(found)

    def _require_short(self, length: int) -> None:
        if length > MAX_EXPANDED_LENGTH:
            raise InvalidError("a variable makes the text too long", evidence=self._text[:100])

    def _next(self) -> str:
        character = self._text[self._at : self._at + 1]
        self._at += 1
        return character

    def _escaped(self) -> str:
        return self._next()

    def _single(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise self._broken("a ' is missing")
        text, self._at = self._text[self._at : end], end + 1
        return text

    def _double(self) -> str:
        found: list[str] = []
        length = 0
        while self._at < len(self._text):
            character = self._next()
            if character == '"':
                return "".join(found)
            if character == "$":
                character = self._variable()
            elif character == "\\":
                after = self._next()
                character = after if after in ('"', "$", "\\") else f"\\{after}"
            length += len(character)
            self._require_short(length)
            found.append(character)
        raise self._broken('a " is missing')

    def _variable(self) -> str:
        if self._text[self._at : self._at + 1] != "{":
            name = self._name()
            return self._variables.get(name, "") if name else "$"
        self._at += 1
        name = self._name()
        if not name:
            raise self._broken("${ has no name")
        operator = self._next()
        if operator == "}":
            return self._variables.get(name, "")
        is_colon = operator == ":"
        operator = self._next() if is_colon else operator
        if not operator:
            raise self._broken("a } is missing")
        if operator not in ("-", "+", "?"):
            raise UnsupportedError(
                "a variable has a modifier that is not known",
                evidence=self._text[:100],
                hint="known are - + ?",
            )
        if self._depth >= _MAX_DEPTH:
            raise self._broken("variables stand too deep in each other")
        self._depth += 1
        word = self.until("}")
        self._depth -= 1
        return self._chosen(name, operator, word, is_colon=is_colon)

    def _chosen(self, name: str, operator: str, word: str, *, is_colon: bool) -> str:
        value = self._variables.get(name)
        is_there = bool(value) if is_colon else value is not None
        if operator == "+":
            return word if is_there else ""
        if not is_there and operator == "?":
            raise InvalidError(f"{name}: {word or 'not set'}", evidence=self._text[:100])
        return value or "" if is_there else word

    def _name(self) -> str:
        start = self._at
        while self._at < len(self._text) and _is_name(self._text[self._at]):
            self._at += 1
            if self._text[start].isdigit():  # $1 is one digit
                break
        return self._text[start : self._at]

    def _broken(self, why: str) -> InvalidError:
        return InvalidError(f"the quoting is not complete: {why}", evidence=self._text[:100])


def _is_name(character: str) -> bool:
    return character == "_" or (character.isascii() and character.isalnum())
