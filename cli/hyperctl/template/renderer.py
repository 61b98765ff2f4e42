# SPDX-License-Identifier: Apache-2.0
"""A template's tree and data -> text."""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hyperctl.template.functions import FUNCTIONS, OpenMap, TemplateError, go_text, render_value
from hyperctl.template.parser import Block, Chain, Literal, Name, Node, Operand, Pipeline, Variable

Scope = ChainMap[str, Any]
_NOTHING = object()


class Renderer:
    def nodes(self, nodes: Sequence[Node], dot: object, scope: Scope) -> list[str]:
        out: list[str] = []
        for node in nodes:
            if isinstance(node, str):
                out.append(node)
            elif isinstance(node, Block):
                out += self._block(node, dot, scope)
            else:
                value = self._pipeline(node, dot, scope)
                if not node.variables:
                    out.append(render_value(value))
        return out

    def _block(self, block: Block, dot: object, scope: Scope) -> list[str]:
        inner = scope.new_child()
        value = self._pipeline(block.pipeline, dot, inner)
        if not value:
            return self.nodes(block.otherwise, dot, inner)
        if block.keyword != "range":
            return self.nodes(block.body, value if block.keyword == "with" else dot, inner)
        out: list[str] = []
        for key, item in _items(value):
            turn = inner.new_child()
            names = block.pipeline.variables
            turn.update(zip(names, (item,) if len(names) == 1 else (key, item), strict=False))
            out += self.nodes(block.body, item, turn)
        return out

    def _pipeline(self, pipeline: Pipeline, dot: object, scope: Scope) -> Any:
        value: Any = _NOTHING
        for command in pipeline.commands:
            value = self._command(command, value, dot, scope)
        if pipeline.variables:
            name = pipeline.variables[-1]
            if pipeline.declares:
                scope[name] = value
            else:
                _assign(scope, name, value)
        return value

    def _command(self, command: tuple[Operand, ...], piped: Any, dot: object, scope: Scope) -> Any:
        first, *rest = command
        args = [self._operand(operand, dot, scope) for operand in rest]
        if piped is not _NOTHING:
            args.append(piped)
        if isinstance(first, Name):
            return _call(first.name, FUNCTIONS[first.name], args)
        value = self._operand(first, dot, scope)
        if callable(value):
            return _call("method", value, args)
        if args:
            raise TemplateError("can't give an argument to what is not a function")
        return value

    def _operand(self, operand: Operand, dot: object, scope: Scope) -> Any:
        match operand:
            case Literal(value):
                return value
            case Variable("."):
                return dot
            case Variable(name):
                if name not in scope:
                    raise TemplateError(f"undefined variable {name!r}")
                return scope[name]
            case Chain(base, fields):
                value = self._operand(base, dot, scope)
                for name in fields:
                    value = _field(value, name)
                return value
            case Name(name):
                return _call(name, FUNCTIONS[name], [])
            case Pipeline():
                return self._pipeline(operand, dot, scope)


def _assign(scope: Scope, name: str, value: object) -> None:
    for block in scope.maps:
        if name in block:
            block[name] = value
            return
    raise TemplateError(f"undefined variable {name!r}")


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        if isinstance(value, OpenMap):
            return None
        raise TemplateError(f"there is no field {name!r}; there are {', '.join(map(str, value)) or 'none'}")
    raise TemplateError(f"there is no field {name!r} in {render_value(value)!r}")


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    raise TemplateError(f"can't range over {render_value(value)!r}")


def _call(name: str, function: Callable[..., Any], args: list[Any]) -> Any:
    try:
        return function(*args)
    except TemplateError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise TemplateError(f"{name}: wrong arguments {', '.join(map(go_text, args)) or '(none)'}") from error
