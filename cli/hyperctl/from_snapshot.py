# SPDX-License-Identifier: Apache-2.0
"""`hyper run --from-snapshot`: clones, whose processes are alive already: nothing to start, nothing to attach to."""

from hyper.v1 import snapshot_pb2 as pb
from hyperctl import client as hyperd
from hyperctl.cidfile import claim_cidfile
from hyperctl.clones import build_clone_options, print_clones
from hyperctl.detach import DEFAULT_KEYS
from hyperctl.errors import InvalidError
from hyperctl.spec import ContainerFlags, given_flags

# What a clone may have of its own. All else was settled when the snapshot's source was made.
FLAGS_OF_CLONES = frozenset({"name", "env", "env_file", "label", "label_file", "network", "rm", "cidfile"})


def refuse_with_snapshot(
    image: str | None, flags: ContainerFlags, *, sig_proxy: bool, detach_keys: str
) -> None:
    """Raises InvalidError that names what cannot be asked of a clone."""
    if image is not None:
        raise InvalidError(
            f"an image ({image}) and a snapshot at once",
            subject="--from-snapshot",
            hint="leave one away: a clone's image and command are its source's",
        )
    refused = [written for name, written in given_flags(flags).items() if name not in FLAGS_OF_CLONES]
    refused += ["--no-sig-proxy"] * (not sig_proxy) + ["--detach-keys"] * (detach_keys != DEFAULT_KEYS)
    if refused:
        raise InvalidError(
            f"{', '.join(refused)} cannot be chosen for a clone",
            subject="--from-snapshot",
            hint="a clone goes on as its source was; `hyper attach` joins it, `hyper exec` runs more in it",
        )


def run_clones(snapshot: str, flags: ContainerFlags, count: str) -> int:
    """Always in the background; prints the ids."""
    clone_options = build_clone_options(
        count=count,
        name=flags.name,
        env=flags.env,
        env_file=flags.env_file,
        label=flags.label,
        label_file=flags.label_file,
        network=_one_network(flags.network),
        auto_remove=flags.rm,
    )
    if flags.cidfile and clone_options.count != 1:
        raise InvalidError("holds one id: not for several clones", subject="--cidfile")
    request = pb.RestoreSnapshotRequest(snapshot=snapshot, options=clone_options)
    with claim_cidfile(flags.cidfile) as cidfile:
        clones = hyperd.ask(lambda client: client.snapshots.RestoreSnapshot(request)).clones
        for clone in clones:
            cidfile.write(clone.container_id)
    print_clones(clones)
    return 0


def _one_network(texts: list[str]) -> str:
    """Raises InvalidError for several, or one with more than a name."""
    if len(texts) > 1 or any("=" in text for text in texts):
        raise InvalidError(
            "a clone has one network, as its source's VM, and an address of its own there",
            subject=f"--network {texts[-1]}",
            hint="`hyper network connect` it when it runs",
        )
    return texts[0] if texts else ""
