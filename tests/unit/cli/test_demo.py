# SPDX-License-Identifier: Apache-2.0
"""`make demo` after `make install`: its daemon is its own, even where systemd has one to start."""

from pathlib import Path

from demo.__main__ import start_arguments
from hyperd import config


def test_the_demos_daemon_is_not_systemds_and_has_directories_of_its_own(tmp_path: Path):
    command, for_hyperd = " ".join(start_arguments(tmp_path)).split(" -- ")
    assert command.startswith("daemon start --log")
    flags = dict(item.removeprefix("--set=").split("=") for item in for_hyperd.split())
    settings = config.load(None, {}, flags).daemon
    assert settings.state_dir.is_relative_to(tmp_path)
    assert settings.run_dir.is_relative_to(tmp_path)
    assert settings.socket is None
