# SPDX-License-Identifier: Apache-2.0
"""`hyper doctor`: is this host fit, and if not, what to do."""

import json
import sys
from typing import Annotated, Any

import typer

from hyper.v1 import system_pb2 as pb
from hyperctl import client as hyperd
from hyperctl import errors, process, tree
from hyperctl.errors import CliError, InvalidError
from hyperctl.render import printable, render_json

DEADLINE_S = 120.0
MARKS = {"ok": "ok", "warning": "warn", "failed": "FAIL"}
COLOURS = {"ok": "\x1b[32m", "warning": "\x1b[33m", "failed": "\x1b[1;31m"}
LEVELS = {
    pb.CHECK_LEVEL_OK: "ok",
    pb.CHECK_LEVEL_WARNING: "warning",
    pb.CHECK_LEVEL_FAILED: "failed",
}
NOT_ASKED = frozenset({errors.UNAVAILABLE, errors.DENIED, errors.TIMEOUT})

Check = dict[str, Any]

app = tree.group()


@tree.command(app, "doctor")
def doctor(
    *,
    form: Annotated[
        str, typer.Option("--format", metavar="table|json", help="How to print it", show_default=False)
    ] = "table",
) -> int:
    """Check this host and say what is missing. The exit status is 1 when a check failed."""
    if form not in {"table", "json"}:
        raise InvalidError(f"invalid argument {form!r}: table or json", subject="--format")
    try:
        checks, source = ask_daemon(), "hyperd"
    except CliError as error:
        if error.exit_status not in NOT_ASKED:
            raise
        checks, source = decode_report(process.read_doctor_report()), f"`hyperd --doctor` ({error.brief})"
    if form == "json":
        print(render_json({"checks": checks}, indent=2))
    else:
        print(render_checks(checks, colour=sys.stdout.isatty()))
        print(f"\nChecked by {source}. {summarize(checks)}")
    return 1 if any(check["level"] == "failed" for check in checks) else 0


def ask_daemon() -> list[Check]:
    response = hyperd.ask(lambda client: client.system.CheckHost(pb.CheckHostRequest(), timeout=DEADLINE_S))
    return [
        {
            "name": check.name,
            "level": LEVELS.get(check.level, "failed"),
            "finding": check.finding,
            "advice": check.advice,
        }
        for check in response.checks
    ]


def decode_report(report: bytes) -> list[Check]:
    """`{"checks": [{"name", "level", "finding", "advice"}]}`. Raises CliError for anything else."""
    try:
        checks = [
            {key: str(check.get(key, "")) for key in ("name", "level", "finding", "advice")}
            for check in json.loads(report)["checks"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CliError(
            "its report cannot be read",
            subject="hyperd --doctor",
            evidence=report[:1000].decode(errors="replace"),
        ) from error
    for check in checks:
        if check["level"] not in MARKS:
            check["level"] = "failed"
    return checks


def render_checks(checks: list[Check], *, colour: bool) -> str:
    width = max((len(check["name"]) for check in checks), default=0)
    lines = []
    for check in checks:
        mark = MARKS[check["level"]].ljust(4)
        if colour:
            mark = f"{COLOURS[check['level']]}{mark}\x1b[0m"
        finding, *more = printable(check["finding"]).splitlines() or [""]
        lines.append(f"{mark}  {printable(check['name']).ljust(width)}  {finding}".rstrip())
        advice = [f"-> {line}" for line in printable(check["advice"]).splitlines()]
        lines += [f"      {' ' * width}  {line}" for line in (*more, *advice)]
    return "\n".join(lines)


def summarize(checks: list[Check]) -> str:
    counts = {level: sum(check["level"] == level for check in checks) for level in MARKS}
    warnings = f"{counts['warning']} warning{'' if counts['warning'] == 1 else 's'}"
    if counts["failed"]:
        return f"{counts['failed']} failed, {warnings}: hyper will not work as it is."
    if counts["warning"]:
        return f"{warnings}: hyper works, with limits."
    return "All is well."
