# SPDX-License-Identifier: Apache-2.0
"""Policies as the command takes them: a word, or a file that hyperd reads."""

import sys
from pathlib import Path

from hyperctl import options
from hyperctl.errors import InvalidError

MAX_DOCUMENT_BYTES = 256 * 1024
WORDS = ("none", "allow-all")


def read_egress(text: str, flag: str = "--egress") -> str:
    """`none`, `allow-all`, or what is in a file (`-`: standard input). Raises InvalidError."""
    return text if text in WORDS else read_document(text, flag, hint=f"a file, or {' or '.join(WORDS)}")


def read_document(path: str, flag: str, *, hint: str = "") -> str:
    """Raises InvalidError."""
    subject = f"{flag} {path}"
    try:
        if path == "-":
            content = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", subject=subject, hint=hint) from error
    if len(content) > MAX_DOCUMENT_BYTES:
        raise InvalidError(f"is larger than {MAX_DOCUMENT_BYTES >> 10} KiB", subject=subject)
    try:
        document = content.decode()
    except UnicodeDecodeError as error:
        raise InvalidError("is not UTF-8 text", subject=subject) from error
    if not document.strip():
        raise InvalidError("is empty", subject=subject, hint=hint)
    return document


def parse_rate(flag: str, text: str) -> int:
    """Bytes a second, as a size; 0 when it is not given. Raises InvalidError."""
    return options.parse_size(flag, text.lower().removesuffix("/s")) if text else 0
