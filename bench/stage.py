# SPDX-License-Identifier: Apache-2.0
"""What every bench is given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Result
from tests import images
from tests.harness import Hyper, hyper

MEMORY_MIB = 256  # of every guest here: hyperd's default
# A hundred guests are promised more than this host may have; none of them touches all of it.
SETTINGS = {"vm.memory_overcommit": "8"}


@dataclass(frozen=True, slots=True)
class Stage:
    host: Hyper
    accelerator: str
    n: int | None  # runs that were asked for; None: each bench's own number
    image_mib: int = 1024  # of the image that is pulled and pushed; others are a half or twice that

    def runs(self, usual: int) -> int:
        return usual if self.n is None else self.n


Bench = Callable[[Stage], list[Result]]


@contextmanager
def running_hyper(image: str, scratch: str, **settings: str) -> Iterator[Hyper]:
    """A hyper of our own that has the image; settings with a double underscore for the dot."""
    own = {key.replace("__", "."): value for key, value in settings.items()}
    with hyper(accel="auto", settings=SETTINGS | own) as host:
        images.write_layout(images.busybox_image(), Path(scratch) / "busybox", f"{image}:latest")
        host.ok("pull", "-q", f"oci:{scratch}/busybox:{image}:latest")
        yield host
