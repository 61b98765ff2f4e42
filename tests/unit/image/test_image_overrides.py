# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime

from hyperd.image.assemble import Blob, assemble, from_nothing
from hyperd.image.overrides import overridden
from hyperd.model.image import Digest, ImageConfig, NewImage, Platform

BASE = {"Cmd": ["sh"], "Env": ["A=1"], "Labels": {"a": "1"}, "ExposedPorts": {"80/tcp": {}}, "Shell": ["x"]}


def test_without_overrides_the_config_is_the_images() -> None:
    assert overridden(BASE, None) == BASE


def test_what_a_container_was_created_with_replaces_the_images_and_the_rest_stays() -> None:
    config = ImageConfig(env=("A=2",), entrypoint=("/entry",), user="me", stop_signal="INT")
    assert overridden(BASE, config) == {
        "Env": ["A=2"],
        "Entrypoint": ["/entry"],
        "User": "me",
        "StopSignal": "INT",
        "ExposedPorts": {"80/tcp": {}},
        "Shell": ["x"],
    }


def test_changes_come_after_it() -> None:
    config = ImageConfig(cmd=("serve",), env=("A=2",), labels={"b": "2"}, working_directory="/srv")
    new = NewImage(overrides=config, changes=("ENV A=3",))
    blob = Blob(Digest("sha256:" + "b" * 64), 1)
    base = from_nothing(Platform("linux", "amd64"))
    made = assemble(base, Digest("sha256:" + "a" * 64), blob, new, datetime.now(UTC)).parsed.config
    assert made.env == ("A=3",)
    assert (made.cmd, made.working_directory, made.labels) == (("serve",), "/srv", {"b": "2"})
