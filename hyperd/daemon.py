# SPDX-License-Identifier: Apache-2.0
"""The composition root: the only module that knows all the others."""

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import signal
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from hyperd.api import (
    BuildServicer,
    ContainerServicer,
    EgressServicer,
    FloatingServicer,
    ImageServicer,
    NetworkServicer,
    SecurityGroupServicer,
    Servicers,
    SnapshotServicer,
    SystemServicer,
    TemplateServicer,
    VolumeServicer,
    serving,
)
from hyperd.build import BuilderSizing, Builds, BuildSettings
from hyperd.config import Config
from hyperd.desk import Desk
from hyperd.errors import HyperError, InvalidError, UnavailableError, WrongStateError
from hyperd.guest import AgentDialer
from hyperd.host import systemd, users
from hyperd.host.database import Database
from hyperd.host.lock import FileLock
from hyperd.host.reaper import Reaper
from hyperd.host.workers import Workers
from hyperd.image import LOW_SHARE, ImageSettings, Marks, OciImageStore, host_platform
from hyperd.model.container import Sizing
from hyperd.model.vm import OWN_UIDS, SandboxId, own_uid
from hyperd.network import BridgeNetworks, BridgeSettings, Network, parse_pools
from hyperd.sandbox import (
    AcceleratorChooser,
    Admission,
    Facts,
    Findings,
    Fleet,
    FleetSettings,
    FloatingDesk,
    GuestSettings,
    Ledger,
    NetworkDesk,
    PolicyDesk,
    Records,
    Resetting,
    Reviver,
    Rooms,
    Runner,
    RunSettings,
    Services,
    SpareMaker,
    Spares,
    SpareSettings,
    TemplateBuilder,
    Templates,
    TemplateSettings,
    Turns,
    VolumeDesk,
    fingerprint,
    parallel_starts,
)
from hyperd.snapshot import LocalSnapshots
from hyperd.storage import Doors, LocalShares, LocalStorage, LocalVolumes, Places, SpaceWatch
from hyperd.vm.libvirt import LibvirtHypervisor, LibvirtSettings

log = logging.getLogger(__name__)

RECONNECT_TIMEOUT_S = 10.0
# reboot=t with QEMU's -no-reboot: a panicking guest ends its VM instead of hanging. The serial console is slow: quiet.
GUEST_CMDLINE = "console=ttyS0 quiet panic=1 reboot=t no_timer_check"


@dataclass(frozen=True, slots=True)
class _Floor:
    """What stands below all rooms."""

    database: Database
    files: Workers


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run the daemon until ``stop``. VMs outlive it.

    Raises WrongStateError when another daemon has this state, UnavailableError for what is missing on the host.
    """
    async with contextlib.AsyncExitStack() as stack:
        floor = await _open_floor(config, stack)
        # Before anything is looked at: what no record knows is removed, and another daemon's has no record here.
        run_lock = FileLock(config.daemon.run_dir / "hyperd.lock", remedy="a run directory of its own")
        run_lock.acquire()
        stack.callback(run_lock.release)
        await stack.enter_async_context(Reaper())
        hypervisor = await stack.enter_async_context(LibvirtHypervisor(_libvirt_settings(config)))
        capabilities = await hypervisor.prepare()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        images = OciImageStore(_image_settings(config), floor.database, tasks)
        await images.open()
        stack.push_async_callback(images.close)
        storage, volumes, shares = await _open_storage(config, floor, stack, tasks)
        network = _networks(config, floor)
        stack.callback(network.close)
        await prepare_network(network)
        keeping = tasks.create_task(network.keep())
        stack.callback(keeping.cancel)
        snapshots = LocalSnapshots(config.daemon.state_dir / "snapshots", qemu_gid=_qemu_owner(config)[1])
        stack.callback(snapshots.close)
        await snapshots.open()
        rooms = Rooms(hypervisor, AgentDialer(), images, storage, network, snapshots, volumes, shares)
        settings, ledger = _run_settings(config), Ledger(_admission(config))
        facts = _facts(config, settings.guest, hypervisor, floor.files)
        runner = _runner(config, rooms, settings, facts, ledger, floor.files, tasks)
        stack.push_async_callback(runner.templates.close)
        stack.push_async_callback(runner.spares.close)
        chooser = _accelerator(config, rooms, runner, floor.files, capabilities.qemu_version)
        records = Records(floor.database)
        await records.open()
        reviver = Reviver(runner, floor.files)
        services = Services(
            runner,
            records,
            ledger,
            chooser.choose,
            reviver,
            facts,
            _disk_owner(config),
            VolumeDesk(volumes),
        )
        fleet = Fleet(services, _fleet_settings(config))
        network.names_from(fleet.named)
        images.used_by(fleet.images_in_use)
        desk = Desk(
            config,
            capabilities,
            _libvirt_settings(config).connection_uri,
            chooser,
            fleet,
            images,
            network,
            runner.templates,
            runner.spares,
            storage,
            snapshots,
            floor.files,
        )
        await _run(
            config, fleet, images, Builds(_build_settings(config), fleet, images, floor.files), desk, stop
        )


async def _run(
    config: Config, fleet: Fleet, images: OciImageStore, builds: Builds, desk: Desk, stop: asyncio.Event
) -> None:
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fleet.run(ready))
        opened = tasks.create_task(ready.wait())
        await asyncio.wait((running, opened), return_when=asyncio.FIRST_COMPLETED)
        # Only now: the fleet would remove the VMs of both as such that no record knows.
        warming_up = tasks.create_task(desk.warm_up())
        building = tasks.create_task(builds.run())
        policies = PolicyDesk(
            desk.network,
            lambda reference: fleet.get(reference).record,
            lambda: [view.record for view in fleet.views()],
        )
        system = SystemServicer(
            desk.version, desk.info, desk.checks, desk.disk_usage, Resetting(desk.network, fleet, desk.spares)
        )
        async with serving(
            config.socket,
            config.daemon.socket_group,
            Servicers(
                ContainerServicer(fleet),
                ImageServicer(images, fleet),
                system,
                TemplateServicer(desk.templates, desk.build_templates),
                SnapshotServicer(fleet),
                VolumeServicer(fleet),
                NetworkServicer(fleet, NetworkDesk(desk.network, fleet.views)),
                BuildServicer(builds),
                EgressServicer(policies),
                SecurityGroupServicer(policies),
                FloatingServicer(FloatingDesk(desk.network, fleet)),
            ),
        ):
            log.info("serving", extra={"socket": str(config.socket), "pid": os.getpid()})
            systemd.notify("READY=1")
            await stop.wait()
            systemd.notify("STOPPING=1")
        for task in (opened, building, running, warming_up):
            task.cancel()
    log.info("ended; virtual machines run on")


def _runner(
    config: Config,
    rooms: Rooms,
    settings: RunSettings,
    facts: Facts,
    ledger: Ledger,
    files: Workers,
    tasks: asyncio.TaskGroup,
) -> Runner:
    """With all that a start can begin with: a spare, a template."""
    template_settings = _template_settings(config)
    builder = TemplateBuilder(rooms, settings, template_settings, files)
    templates = Templates(builder, rooms.snapshots, facts, ledger, settings.guest, template_settings, tasks)
    turns = Turns(parallel_starts(settings.parallel_starts))
    maker = SpareMaker(rooms, settings, _disk_owner(config), files)
    spares = Spares(maker, templates, ledger, turns, SpareSettings(config.template.spares), tasks)
    return Runner(rooms, settings, templates, spares, turns, files)


async def prepare_network(network: Network) -> None:
    """Containers run without it, too: a start that needs it tries again, and is told the reason.

    Raises WrongStateError when another hyperd has the bridge.
    """
    try:
        await network.prepare()
    except WrongStateError:
        raise
    except HyperError as error:
        log.error("the network is not ready", extra={"error": str(error)})  # noqa: TRY400


async def prepare(config: Config) -> None:
    """What set-up does once so that no user's first start of hyperd has to: fill libvirt's capability cache."""
    async with contextlib.AsyncExitStack() as stack:
        await _open_floor(config, stack)
        await stack.enter_async_context(Reaper())
        hypervisor = await stack.enter_async_context(LibvirtHypervisor(_libvirt_settings(config)))
        await hypervisor.prepare()


async def _open_floor(config: Config, stack: contextlib.AsyncExitStack) -> _Floor:
    state_dir, run_dir = config.daemon.state_dir, config.daemon.run_dir
    for directory in (state_dir, run_dir, state_dir / "sandboxes", run_dir / "vm"):
        try:
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"cannot be made: {error.strerror}", subject=str(directory), hint="hyperd runs as root"
            ) from error
    lock = FileLock(state_dir / "hyperd.lock")
    lock.acquire()
    stack.callback(lock.release)
    files = Workers("files", 4)
    stack.callback(files.close)
    database = Database(state_dir / "records.sqlite")
    await database.open()
    stack.push_async_callback(database.close)
    return _Floor(database, files)


async def _open_storage(
    config: Config, floor: _Floor, stack: contextlib.AsyncExitStack, tasks: asyncio.TaskGroup
) -> tuple[LocalStorage, LocalVolumes, LocalShares]:
    storage = LocalStorage(
        config.daemon.state_dir / "storage",
        size_bytes=config.storage.writable_size_mib << 20,
        owner_of=_disk_owner(config),
    )
    stack.callback(storage.close)
    await storage.prepare()
    volumes = LocalVolumes(
        config.daemon.state_dir / "volumes",
        floor.database,
        size_bytes=config.storage.volume_size_mib << 20,
        owner_of=_disk_owner(config),
        doors=Doors(config.daemon.run_dir / "doors", owner_of=_disk_owner(config), user=_qemu_owner(config)),
    )
    stack.callback(volumes.close)
    await volumes.open()
    watching = tasks.create_task(SpaceWatch(config.daemon.state_dir, floor.files).run())
    stack.callback(watching.cancel)
    shares = _shares(config)
    stack.callback(shares.close)
    return storage, volumes, shares


def _shares(config: Config) -> LocalShares:
    own = (config.daemon.state_dir, config.daemon.run_dir, config.socket)
    places = Places(config.storage.bind_allow, own)
    root, program = config.daemon.run_dir / "shares", config.storage.virtiofsd
    return LocalShares(root, program, places, owner_of=_disk_owner(config))


def _libvirt_settings(config: Config) -> LibvirtSettings:
    return LibvirtSettings(
        root=config.daemon.state_dir / "libvirt",
        qemu_user=config.vm.qemu_user,
        qemu_group=config.vm.qemu_group,
        own_uids=_has_own_uids(config),
        uri=config.vm.hypervisor_uri,
    )


def _image_settings(config: Config) -> ImageSettings:
    return ImageSettings(
        root=config.daemon.state_dir / "images",
        mkfs_erofs=str(config.image.mkfs_erofs),
        skopeo=config.image.skopeo,
        budget=image_budget(config),
    )


def image_budget(config: Config) -> Marks:
    high, low = config.image.budget_mib, config.image.budget_low_mib
    try:
        return Marks(high << 20, (low or int(high * LOW_SHARE)) << 20)
    except ValueError as error:
        raise InvalidError(str(error), subject=f"[image] budget_low_mib {low}, budget_mib {high}") from error


def _networks(config: Config, floor: _Floor) -> BridgeNetworks:
    pools = parse_pools(config.network.floating)
    return BridgeNetworks(_bridge_settings(config), floor.database, pools=pools)


def _bridge_settings(config: Config) -> BridgeSettings:
    try:
        subnet = IPv4Network(config.network.subnet)
    except ValueError as error:
        raise InvalidError(
            "is not an IPv4 network", subject=f"[network] subnet {config.network.subnet}"
        ) from error
    try:
        publish_address = IPv4Address(config.network.publish_address)
    except ValueError as error:
        raise InvalidError(
            "is not an IPv4 address", subject=f"[network] publish_address {config.network.publish_address}"
        ) from error
    return BridgeSettings(
        tap_owner_uid=_qemu_owner(config)[0],
        bridge=config.network.bridge,
        subnet=subnet,
        mtu=config.network.mtu,
        publish_address=publish_address,
    )


def _qemu_owner(config: Config) -> tuple[int, int]:
    try:
        return pwd.getpwnam(config.vm.qemu_user).pw_uid, grp.getgrnam(config.vm.qemu_group).gr_gid
    except KeyError as error:
        raise UnavailableError(
            f"there is no {error.args[0].rpartition(' ')[2]}",
            subject="[vm] qemu_user, qemu_group",
            hint="Debian's package libvirt-daemon-driver-qemu makes libvirt-qemu",
        ) from error


def _has_own_uids(config: Config) -> bool:
    """Whether each QEMU gets a uid of its own; not where hyperd runs in a user namespace without those uids."""
    if config.vm.qemu_users == "shared":
        return False
    if users.are_mapped(OWN_UIDS, users.read_uid_map()):
        return True
    log.warning(
        "uids are missing in this user namespace: all QEMUs share one", extra={"user": config.vm.qemu_user}
    )
    return False


def _disk_owner(config: Config) -> Callable[[SandboxId], tuple[int, int]]:
    shared, group = _qemu_owner(config)
    if not _has_own_uids(config):
        return lambda _: (shared, group)
    return lambda sandbox_id: (own_uid(sandbox_id), group)


def _run_settings(config: Config) -> RunSettings:
    guest = GuestSettings(
        kernel=config.vm.kernel.resolve(),
        initramfs=config.vm.initramfs.resolve(),
        cmdline=f"{GUEST_CMDLINE} {config.vm.cmdline}".strip(),
    )
    return RunSettings(
        guest=guest,
        state_dir=config.daemon.state_dir / "sandboxes",
        run_dir=config.daemon.run_dir / "vm",
        boot_timeout_s=config.vm.boot_timeout_s,
        reconnect_timeout_s=RECONNECT_TIMEOUT_S,
        parallel_starts=config.vm.parallel_starts,
    )


def _fleet_settings(config: Config) -> FleetSettings:
    return FleetSettings(
        default_sizing=Sizing(config.vm.default_vcpus, config.vm.default_memory_mib),
        platform=host_platform(),
        log_dir=config.daemon.state_dir / "sandboxes",
        log_max_bytes=config.logs.max_mib << 20,
    )


def _build_settings(config: Config) -> BuildSettings:
    sizing = BuilderSizing(
        cpus=min(config.build.cpus, float(os.cpu_count() or 1)),
        memory_bytes=config.build.memory_mib << 20,
        cache_bytes=config.build.cache_size_mib << 20,
    )
    return BuildSettings(config.build.image, sizing, host_platform())


def _admission(config: Config) -> Admission:
    host_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return Admission(
        memory_mib=int(host_mib * config.vm.memory_overcommit) - config.vm.host_reserve_mib,
        max_sandboxes=config.vm.max_sandboxes,
        max_vcpus_each=os.cpu_count() or 1,
    )


def _template_settings(config: Config) -> TemplateSettings:
    return TemplateSettings(
        owner_of=_disk_owner(config),
        budget_bytes=config.template.budget_mib << 20,
        enabled=config.template.enabled,
        share_memory=config.template.share_memory,
    )


def _facts(config: Config, guest: GuestSettings, hypervisor: LibvirtHypervisor, files: Workers) -> Facts:
    async def ask() -> tuple[str, str]:
        capabilities = await hypervisor.prepare()
        return capabilities.qemu_version, capabilities.machine

    emulator = _libvirt_settings(config).platform.emulator
    return Facts(guest.kernel, guest.initramfs, emulator=emulator, ask=ask, files=files)


def _accelerator(
    config: Config, rooms: Rooms, runner: Runner, files: Workers, qemu_version: str
) -> AcceleratorChooser:
    guest = runner.settings.guest
    emulator = _libvirt_settings(config).platform.emulator
    key = (*(fingerprint(path) for path in (guest.kernel, guest.initramfs, emulator)), qemu_version)
    findings = Findings(config.daemon.state_dir / "accelerator.json", key, files)
    return AcceleratorChooser(
        config.vm.accel, rooms.hypervisor, rooms.dialer, guest, runner.settings.paths, findings, files
    )


def stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
