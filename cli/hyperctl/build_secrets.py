# SPDX-License-Identifier: Apache-2.0
"""`--secret`, in BuildKit's grammar: id=ID[,src=FILE|,env=NAME][,type=file|env]. No message has any of a secret."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from hyper.v1 import build_pb2 as pb
from hyperctl.errors import InvalidError

MAX_BYTES = 500 << 10  # BuildKit's


def read_secrets(texts: Iterable[str], environ: Mapping[str, str]) -> list[pb.BuildSecret]:
    return [_read(text, environ) for text in texts]


def _read(text: str, environ: Mapping[str, str]) -> pb.BuildSecret:
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = {"source": "src"}.get(key.lower(), key.lower())
        if not equals or key not in ("id", "src", "env", "type") or key in fields:
            raise InvalidError("is not id=ID[,src=FILE][,env=NAME]", subject=f"--secret {text}")
        fields[key] = value
    secret_id, kind = fields.get("id", ""), fields.get("type", "")
    if not secret_id or kind not in ("", "file", "env") or ("src" in fields and "env" in fields):
        raise InvalidError("is not id=ID[,src=FILE][,env=NAME]", subject=f"--secret {text}")
    name, path = fields.get("env", ""), fields.get("src", "")
    if kind == "env":
        name, path = name or path or secret_id, ""
    elif not name and not path:
        name, path = (secret_id, "") if not kind and secret_id in environ else ("", secret_id)
    return pb.BuildSecret(
        id=secret_id, content=_from_environment(name, environ) if name else _from_file(path)
    )


def _from_environment(name: str, environ: Mapping[str, str]) -> bytes:
    if name not in environ:
        raise InvalidError("is not in the environment", subject=f"--secret {name}")
    return environ[name].encode(errors="surrogateescape")


def _from_file(path: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", subject=f"--secret {path}") from error
    if len(content) > MAX_BYTES:
        raise InvalidError(f"is larger than {MAX_BYTES >> 10} KiB", subject=f"--secret {path}")
    return content
