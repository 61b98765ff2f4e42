# SPDX-License-Identifier: Apache-2.0
"""Generates the contract's Python beside its .proto files; `--check` only tells whether what is there is current."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT / "proto"
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(out: Path) -> None:
    sources = sorted(str(path.relative_to(CONTRACT)) for path in CONTRACT.rglob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    quiet = ["--mypy_opt=quiet", "--mypy_grpc_opt=quiet"]
    plugins = [f"--{plugin}_out={out}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if status := protoc.main(["protoc", f"-I{CONTRACT}", f"-I{well_known}", *plugins, *quiet, *sources]):
        sys.exit(status)


def generated_in(directory: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.name.endswith(GENERATED)
    }


def stale_files() -> list[Path]:
    """Files that are missing, different, or left from a .proto that is gone."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = generated_in(Path(scratch)), generated_in(CONTRACT)
    return sorted(path for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path))


def main() -> None:
    os.environ["PATH"] = f"{sys.prefix}/bin:{os.environ['PATH']}"  # protoc looks there for mypy's plugins
    if "--check" not in sys.argv[1:]:
        for path in generated_in(CONTRACT):
            (CONTRACT / path).unlink()
        generate(CONTRACT)
    elif stale := stale_files():
        sys.exit("not current, run `make proto`:\n" + "\n".join(f"  proto/{path}" for path in stale))


if __name__ == "__main__":
    main()
