# SPDX-License-Identifier: Apache-2.0
"""Documents that people write, YAML or JSON, node by node: whatever is wrong is told with its line. Pure."""

from collections.abc import Callable
from typing import TypeVar

import yaml

from hyperd.errors import InvalidError

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_VALUES = 4096  # of one document
Node = yaml.Node
T = TypeVar("T")


class Reader:
    """``subject``: what the document is called in errors."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._left = MAX_VALUES

    def compose(self, text: str) -> Node:
        """Raises InvalidError for what is neither, or nothing."""
        if len(text.encode(errors="replace")) > MAX_DOCUMENT_BYTES:
            raise InvalidError(f"is larger than {MAX_DOCUMENT_BYTES >> 10} KiB", subject=self._subject)
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark is not None else ""
            evidence = getattr(error, "problem", None) or str(error)
            raise InvalidError(
                "is neither YAML nor JSON", subject=self._subject + where, evidence=evidence
            ) from error
        if root is None:
            raise InvalidError("is empty", subject=self._subject)
        return root

    def word(self, node: Node) -> str | None:
        """None: it is no single word."""
        return str(node.value) if isinstance(node, yaml.ScalarNode) else None

    def sequence(self, node: Node | None, beside: Node, missing: str, most: int) -> list[Node]:
        """``missing``: what is wrong when it is none; ``beside``: where, when it is not there at all."""
        if not isinstance(node, yaml.SequenceNode):
            raise self.wrong(node or beside, missing)
        if len(node.value) > most:
            raise self.wrong(node, f"there are more than {most} rules")
        return list(node.value)

    def mapping(self, node: Node, known: tuple[str, ...]) -> dict[str, Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, f"here should be keys: {', '.join(known)}")
        found: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value not in known:
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "this"
                raise self.wrong(key, f"{shown} is none of the keys: {', '.join(known)}")
            if key.value in found:
                raise self.wrong(key, f"`{key.value}` stands here twice")
            found[key.value] = value
        return found

    def one(self, keys: dict[str, Node], key: str) -> str:
        """ "" when it is not there."""
        node = keys.get(key)
        return self._scalar(node, key) if node is not None else ""

    def many(self, keys: dict[str, Node], key: str, parse: Callable[[str], T]) -> list[T]:
        """A value, or a list of them that is not empty; ``parse`` raises ValueError."""
        node = keys.get(key)
        if node is None:
            return []
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not nodes:
            raise self.wrong(node, f"`{key}` is empty")
        self._left -= len(nodes)
        if self._left < 0:
            raise self.wrong(node, f"there are more than {MAX_VALUES} values")
        return [self.parsed(each, self._scalar(each, key), parse) for each in nodes]

    def parsed(self, node: Node, text: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise self.wrong(node, str(error)) from error

    def wrong(self, node: Node, brief: str) -> InvalidError:
        return InvalidError(brief, subject=f"{self._subject}, line {node.start_mark.line + 1}")

    def _scalar(self, node: Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.wrong(node, f"`{key}` is no plain value")
        return str(node.value)
