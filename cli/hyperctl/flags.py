# SPDX-License-Identifier: Apache-2.0
"""Flags that many commands have, in one wording."""

from typing import Annotated

import typer

RowsFormat = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="json, table, or a template", show_default=False)
]
DocumentsFormat = Annotated[
    str, typer.Option("--format", "-f", metavar="FORMAT", help="json, or a template", show_default=False)
]
OnlyIds = Annotated[bool, typer.Option("--quiet", "-q", help="Only ids")]
OnlyNames = Annotated[bool, typer.Option("--quiet", "-q", help="Only names")]
WholeIds = Annotated[bool, typer.Option("--no-trunc", help="Whole ids")]
ProgressFormat = Annotated[
    str,
    typer.Option("--format", metavar="json", help="Progress as one JSON object a line", show_default=False),
]
