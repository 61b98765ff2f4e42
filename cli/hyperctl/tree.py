# SPDX-License-Identifier: Apache-2.0
"""Typer, made to start fast and to parse as Docker does.

* A group knows its commands' names and summaries; a command's module is imported when it is the one that runs.
* Typer >= 0.28 converts values with pydantic, whose import alone takes 75-100 ms. Our options are plain strings that
  `hyperctl.options` parses, so each parameter is handed a converter that passes them on.
* `--flag=true` and `--flag=false` are understood for switches, as in Docker.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_TRUE, _FALSE = frozenset({"true", "t", "1"}), frozenset({"false", "f", "0"})


class _AsTyped:
    """Stands where Typer would build a pydantic adapter."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None and (param.multiple or param.nargs == -1):
            return ()
        return value


_AS_TYPED = _AsTyped()


def _as_typed(params: list[Any]) -> list[Any]:
    for param in params:
        param._runtime_param = _AS_TYPED  # noqa: SLF001 - see the module's docstring; unset, Typer is merely slow
    return params


class HyperCommand(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _as_typed(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] IMAGE [COMMAND] [ARG...]`: each argument as its metavar has it."""
        return [self.options_metavar or "", *(param.metavar or param.name for param in self._arguments(ctx))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments = [(param.metavar, param.help) for param in self._arguments(ctx) if param.help]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        records = [
            param.get_help_record(ctx) for param in self.get_params(ctx) if param.param_type_name == "option"
        ]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record is not None])

    def _arguments(self, ctx: Any) -> list[Any]:
        return [param for param in self.get_params(ctx) if param.param_type_name == "argument"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        switches: set[str] = set()
        takes_value: set[str] = set()
        for param in self.get_params(ctx):
            if param.param_type_name == "option":
                (switches if param.is_flag else takes_value).update((*param.opts, *param.secondary_opts))
        rewritten = rewrite_switches(
            args, switches, takes_value, stop_at_first=not ctx.allow_interspersed_args
        )
        return super().parse_args(ctx, rewritten)


class HyperGroup(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _as_typed(super().get_params(ctx))


class LazyGroup(HyperGroup):
    """Commands of ``table``: name -> (module under hyperctl.commands, command in it, summary).

    ``aliases``: further names of those, which help does not list.
    """

    table: Mapping[str, tuple[str, str, str]] = {}
    aliases: Mapping[str, str] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in self.table if not name.startswith("__")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = self.aliases.get(cmd_name, cmd_name)
        if name not in self.table:
            return None
        module, command, _ = self.table[name]
        app: typer.Typer = importlib.import_module(f"hyperctl.commands.{module}").app
        if not command:
            return typer.main.get_group(app)
        return typer.main.get_group(app).commands[command]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = dict.fromkeys(self.table, TyperCommand(None))  # what Typer makes its suggestions from
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][2]) for name in self.list_commands(ctx)])


def group(cls: type[HyperGroup] = HyperGroup, summary: str | None = None) -> typer.Typer:
    """A Typer application of ours: no rich, no own traceback printing, no completion of Typer's."""
    return typer.Typer(
        cls=cls,
        help=summary,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["--help"], "max_content_width": 120},
    )


def command(
    app: typer.Typer, name: str, *, passes_args: bool = False, epilog: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command; ``passes_args``: all after its first argument belongs to the process."""
    settings: dict[str, Any] = {"max_content_width": 120}
    if passes_args:
        settings["allow_interspersed_args"] = False
    return app.command(name, cls=HyperCommand, context_settings=settings, epilog=epilog)


def rewrite_switches(
    args: Sequence[str], switches: set[str], takes_value: set[str], *, stop_at_first: bool
) -> list[str]:
    """`--rm=true` -> `--rm`, `--rm=false` -> nothing (or `--no-rm` where that exists). Values are left alone."""
    rewritten: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--" or (stop_at_first and not (word.startswith("-") and len(word) > 1)):
            return [*rewritten, word, *rest]
        name, separator, value = word.partition("=")
        if separator and name in switches and value.lower() in _TRUE | _FALSE:
            if value.lower() in _TRUE:
                rewritten.append(name)
            elif (opposite := f"--no-{name.lstrip('-')}") in switches:
                rewritten.append(opposite)
            continue
        rewritten.append(word)
        if rest and _wants_next(word, switches, takes_value):
            rewritten.append(rest.pop(0))
    return rewritten


def _wants_next(word: str, switches: set[str], takes_value: set[str]) -> bool:
    """Whether the value of ``word`` is the next word: `--name x`, `-e x`, `-ite x`, but not `-ex`."""
    if word.startswith("--"):
        return word in takes_value
    for position, letter in enumerate(word[1:], start=1):
        if f"-{letter}" in takes_value:
            return position == len(word) - 1
        if f"-{letter}" not in switches:
            return False
    return False
