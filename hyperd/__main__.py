# SPDX-License-Identifier: Apache-2.0
"""``hyperd``: read the configuration, then serve."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hyperd import config as configuration
from hyperd import log
from hyperd.errors import HyperError, InvalidError, WrongStateError

# gRPC's fork handlers are for programs that fork and go on in Python; ours only ever exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        flags = dict(_flag(item) for item in options.set)
        config = configuration.load(options.config, os.environ, flags)
        if options.print_config:
            sys.stdout.write(configuration.render(config))
            return 0
        log.set_up(config.daemon.log_level, config.daemon.log_format)
        if options.doctor:
            return _doctor(config, options.format)
        # The rooms load libvirt and gRPC: not for --print-config.

        if options.prepare:
            return _prepare(config)
        asyncio.run(_serve(config))
    except HyperError as error:
        sys.stderr.write(f"hyperd: {error}\n")
        return 1
    except ExceptionGroup as group:
        # What ends a group of tasks comes wrapped; a bug among it keeps its traceback.
        expected, bugs = group.split(HyperError)
        for leaf in _leaves(expected) if expected is not None else ():
            sys.stderr.write(f"hyperd: {leaf}\n")
        if bugs is not None:
            raise bugs from None
        return 1
    return 0


def _leaves(group: ExceptionGroup[HyperError]) -> list[HyperError]:
    leaves: list[HyperError] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, ExceptionGroup) else [error]
    return leaves


async def _serve(config: configuration.Config) -> None:
    from hyperd import daemon  # noqa: PLC0415

    stop = asyncio.Event()
    daemon.stop_on_signals(stop)
    await daemon.serve(config, stop)


def _prepare(config: configuration.Config) -> int:
    from hyperd import daemon  # noqa: PLC0415

    try:
        asyncio.run(daemon.prepare(config))
    except WrongStateError as error:
        # A daemon that runs has filled its caches; set-up beside it is no failure.
        sys.stdout.write(f"hyperd: nothing to prepare: {error.subject}: {error.brief}\n")
    return 0


def _doctor(config: configuration.Config, style: str) -> int:
    from hyperd import doctor  # noqa: PLC0415

    checks = asyncio.run(doctor.check_host(config, None))
    if style == "json":
        found = [
            {"name": item.name, "level": item.level.value, "finding": item.finding, "advice": item.advice}
            for item in checks
        ]
        sys.stdout.write(json.dumps({"checks": found}) + "\n")
    else:
        for item in checks:
            advice = f" - {item.advice}" if item.advice else ""
            sys.stdout.write(f"{item.level.value:8} {item.name}: {item.finding}{advice}\n")
    return 1 if doctor.worst(checks) == "failed" else 0


def _flag(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals:
        raise InvalidError("is not SECTION.KEY=VALUE", subject=f"--set {item}")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hyperd", description="Runs every OCI image in a microVM of its own."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default: {configuration.DEFAULT_PATH}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration in effect and end"
    )
    parser.add_argument("--doctor", action="store_true", help="check this host and end")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of --doctor")
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="fill the capability cache that a first start would fill, and end",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
