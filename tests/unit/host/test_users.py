# SPDX-License-Identifier: Apache-2.0
import pytest

from hyperd.host.users import are_mapped, read_uid_map
from hyperd.model.vm import OWN_UIDS


@pytest.mark.parametrize(
    ("uid_map", "all_there"),
    [
        ("         0          0 4294967295\n", True),
        ("         0     100000      65536\n", False),
        ("0 1000 1\n1 100000 65536\n1879048192 1879048192 268435456\n", True),
        ("1879048192 1879048192 268435455\n", False),
        ("", False),
    ],
)
def test_a_namespace_with_few_uids_is_recognized(uid_map: str, all_there: bool):
    assert are_mapped(OWN_UIDS, uid_map) == all_there


def test_the_kernels_own_words_are_understood():
    assert are_mapped(range(1), read_uid_map())
