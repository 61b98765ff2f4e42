# SPDX-License-Identifier: Apache-2.0
"""What the clones of `run --from-snapshot` and of `fork` are given, and how they are told of."""

import os
from collections.abc import Iterable, Sequence

from hyper.v1 import container_pb2 as pb
from hyperctl import options
from hyperctl.errors import InvalidError

MAX_CLONES = 10_000  # nobody's machine holds more; hyperd has the arithmetic of this one


def build_clone_options(
    *,
    count: str,
    name: str,
    env: Sequence[str],
    env_file: Sequence[str],
    label: Sequence[str],
    label_file: Sequence[str],
    network: str,
    auto_remove: bool,
) -> pb.CloneOptions:
    try:
        return pb.CloneOptions(
            count=options.parse_integer("--count", count, minimum=1, maximum=MAX_CLONES) if count else 1,
            name=name,
            env=options.collect_env(env_file, env, os.environ),
            labels=options.collect_labels(label_file, label),
            network=network,
            auto_remove=auto_remove,
        )
    except UnicodeEncodeError as error:
        raise InvalidError("not UTF-8 text", subject=ascii(error.object)) from error


def print_clones(clones: Iterable[pb.Clone]) -> None:
    """One id a line, by index."""
    for clone in sorted(clones, key=lambda clone: clone.index):
        print(clone.container_id)
