# SPDX-License-Identifier: Apache-2.0
"""`--format`: the part of Go's text/template that people write for Docker, and an error for the rest.

Actions: fields, variables, pipelines, parentheses, comments, `{{- -}}`, if / else if / else, range, with.
Functions: json upper lower title join split pad truncate, and Go's own len index slice print printf println
eq ne lt le gt ge and or not. https://pkg.go.dev/text/template, docker/cli templates/templates.go.

Ours because of what it costs: the one library of the kind that needs no Go (gotpl 0.1, one release, "planning")
is 0.9 MB with four further packages; the others load a Go runtime.
"""

from collections import ChainMap

from hyperctl.template.functions import OpenMap, TemplateError

__all__ = ["OpenMap", "Template", "TemplateError"]


class Template:
    """Parsed once, rendered for each row. Raises TemplateError, also for what we do not support."""

    def __init__(self, text: str) -> None:
        from hyperctl.template.parser import Parser  # its expressions are compiled for those who use one

        self._nodes = Parser(text).parse()

    def render(self, data: object) -> str:
        from hyperctl.template.renderer import Renderer

        return "".join(Renderer().nodes(self._nodes, data, ChainMap({"$": data})))
