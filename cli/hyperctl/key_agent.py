# SPDX-License-Identifier: Apache-2.0
"""An ssh-agent of our own for files of keys: openssh reads them, and asks for a passphrase where one is needed."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from hyperctl.errors import CliError

# Our standard input may be the context: passphrases come from the terminal. It ends with its input, so with us.
_SCRIPT = """
trap 'kill "$SSH_AGENT_PID"' EXIT
trap exit INT TERM
terminal=/dev/null
if (: </dev/tty) 2>/dev/null; then terminal=/dev/tty; fi
ssh-add -q -- "$@" <"$terminal" >&2
echo $?
read -r end
"""
END_S = 10.0


@contextlib.contextmanager
def agent_of(keys: Sequence[str], subject: str) -> Iterator[str]:
    """Its socket, for as long as this is open. Raises CliError."""
    with tempfile.TemporaryDirectory(prefix="hyper-ssh-") as place:
        path = f"{place}/agent"
        try:
            child = subprocess.Popen(
                ["ssh-agent", "-a", path, "sh", "-c", _SCRIPT, "sh", *keys],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise CliError(
                "ssh-agent is not installed", subject=subject, hint="it comes with OpenSSH's client"
            ) from error
        try:
            if child.stdout is None or child.stdout.readline().strip() != b"0":
                raise CliError(
                    "ssh-add does not take it",
                    subject=f"{subject}={','.join(keys)}",
                    hint="a passphrase is asked for on the terminal; without one, `ssh-add` it and use --ssh default",
                )
            yield path
        finally:
            _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
