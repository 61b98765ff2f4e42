# SPDX-License-Identifier: Apache-2.0
import asyncio

import pytest

from hyperd.errors import HyperError, NotFoundError, UnavailableError
from hyperd.host.groups import first_error


async def run(*errors: Exception) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async with first_error(), asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
        for error in errors:
            (outer if isinstance(error, NotFoundError) else inner).create_task(fail(error))


@pytest.mark.parametrize("error", [NotFoundError("gone"), UnavailableError("down")])
async def test_the_one_error_comes_out_as_itself_from_however_deep(error: HyperError) -> None:
    with pytest.raises(HyperError) as caught:
        await run(error)
    assert caught.value is error


async def test_of_several_one_comes_out() -> None:
    with pytest.raises(HyperError, match="first"):
        await run(UnavailableError("first"), UnavailableError("second"))


async def test_a_bug_hides_behind_no_error_of_ours() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await run(UnavailableError("down"), ZeroDivisionError("bug"))
    assert caught.value.split(ZeroDivisionError)[0] is not None
