# SPDX-License-Identifier: Apache-2.0
"""`--format` of the commands that list and of those that show one thing."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hyperctl.render import printable, render_json, render_table
from hyperctl.template import Template

Row = Mapping[str, Any]


def render_rows(
    rows: Sequence[Row],
    *,
    columns: Sequence[str],
    headers: Mapping[str, str],
    form: str = "",
) -> str:
    """A table (the default, `table`, `table TEMPLATE`), a JSON object a line (`json`), or TEMPLATE once a row."""
    form = form.replace(r"\t", "\t").replace(r"\n", "\n")
    if form in {"", "table"}:
        cells = [[str(row[column]) for column in columns] for row in rows]
        return render_table([[headers[column] for column in columns], *cells])
    if form == "json":
        form = "{{json .}}"
    if form.startswith("table"):
        template = Template(form.removeprefix("table").strip(" "))
        titles = {**headers, "Label": lambda key: key}
        lines = [template.render(titles), *(template.render(row) for row in rows)]
        return render_table([line.split("\t") for line in lines])
    template = Template(form)
    return _for_reader("\n".join(template.render(row) for row in rows))


def render_document(document: Row, form: str) -> str:
    """One thing, by TEMPLATE or as `json`."""
    if form == "json":
        return render_json(document)
    return _for_reader(Template(form).render(document))


def print_listing(
    rows: Sequence[Row], *, columns: Sequence[str], headers: Mapping[str, str], form: str, only: str = ""
) -> None:
    """``only``: that column of them, whatever the form."""
    if only:
        print_rows("\n".join(row[only] for row in rows))
    else:
        print_rows(render_rows(rows, columns=columns, headers=headers, form=form))


def print_rows(text: str) -> None:
    if text:
        print(text)


def _for_reader(text: str) -> str:
    """Labels and the like come from strangers: a terminal gets no control characters, a pipe gets all."""
    return printable(text) if sys.stdout.isatty() else text
