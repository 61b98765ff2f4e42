# SPDX-License-Identifier: Apache-2.0
"""Several at once."""

import subprocess

from tests.harness import Hyper

BUSYBOX = "test.local/busybox"


def test_eight_at_once_all_run_with_addresses_of_their_own(host: Hyper):
    script = "ip -4 -o addr show eth0"
    children = [
        subprocess.Popen(
            host.argv("run", "--rm", "-m", "128m", BUSYBOX, "sh", "-c", script), stdout=subprocess.PIPE
        )
        for _ in range(8)
    ]
    outputs = [child.communicate(timeout=200)[0].decode() for child in children]
    assert [child.returncode for child in children] == [0] * 8
    addresses = {output.split("inet ")[1].split("/")[0] for output in outputs}
    assert len(addresses) == 8


def test_one_name_is_given_to_one_of_two_who_ask_at_once(host: Hyper, name: str):
    children = [
        subprocess.Popen(
            host.argv("create", "--name", name, BUSYBOX, "true"),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for child in children:
        child.communicate(timeout=60)
    assert sorted(child.returncode for child in children) == [0, 4]
