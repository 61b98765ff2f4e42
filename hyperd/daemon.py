# SPDX-License-Identifier: Apache-2.0
"""The composition root: the only module that knows all the others."""

import asyncio
import contextlib
import logging
import os
import signal

from hyperd import settings
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
from hyperd.build import Builds
from hyperd.config import Config
from hyperd.desk import Desk
from hyperd.errors import HyperError, WrongStateError
from hyperd.floor import Floor, open_floor
from hyperd.guest import AgentDialer
from hyperd.host import systemd
from hyperd.host.lock import FileLock
from hyperd.host.reaper import Reaper
from hyperd.host.workers import Workers
from hyperd.image import OciImageStore
from hyperd.network import BridgeNetworks, Network, parse_pools
from hyperd.sandbox import (
    AcceleratorChooser,
    Facts,
    Findings,
    Fleet,
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
    Turns,
    VolumeDesk,
    fingerprint,
    kernel_release,
    parallel_starts,
)
from hyperd.snapshot import LocalSnapshots
from hyperd.storage import Doors, LocalShares, LocalStorage, LocalVolumes, Places, SpaceWatch
from hyperd.vm.libvirt import LibvirtHypervisor

log = logging.getLogger(__name__)


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run the daemon until ``stop``. VMs outlive it.

    Raises WrongStateError when another daemon has this state, UnavailableError for what is missing on the host.
    """
    async with contextlib.AsyncExitStack() as stack:
        floor = await open_floor(config, stack)
        # Before anything is looked at: what no record knows is removed, and another daemon's has no record here.
        run_lock = FileLock(config.daemon.run_dir / "hyperd.lock", remedy="a run directory of its own")
        run_lock.acquire()
        stack.callback(run_lock.release)
        await stack.enter_async_context(Reaper())
        hypervisor = await stack.enter_async_context(LibvirtHypervisor(settings.libvirt(config)))
        capabilities = await hypervisor.prepare()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        images = OciImageStore(settings.images(config), floor.database, tasks)
        await images.open()
        stack.push_async_callback(images.close)
        storage, volumes, shares = await _open_storage(config, floor, stack, tasks)
        network = _networks(config, floor)
        stack.callback(network.close)
        await prepare_network(network)
        keeping = tasks.create_task(network.keep())
        stack.callback(keeping.cancel)
        snapshots = LocalSnapshots(
            config.daemon.state_dir / "snapshots", qemu_gid=settings.qemu_owner(config)[1]
        )
        stack.callback(snapshots.close)
        await snapshots.open()
        rooms = Rooms(hypervisor, AgentDialer(), images, storage, network, snapshots, volumes, shares)
        starts, ledger = settings.starts(config), Ledger(settings.admission(config))
        facts = _facts(config, starts.guest, hypervisor, floor.files)
        runner = _runner(config, rooms, starts, facts, ledger, floor.files, tasks)
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
            settings.disk_owner(config),
            VolumeDesk(volumes),
        )
        fleet = Fleet(services, settings.fleet(config))
        network.names_from(fleet.named, fleet.name_of)
        images.used_by(fleet.images_in_use)
        desk = Desk(
            config,
            capabilities,
            settings.libvirt(config).connection_uri,
            chooser,
            fleet,
            images,
            network,
            runner.templates,
            runner.spares,
            storage,
            snapshots,
            floor.files,
            await floor.files.call(kernel_release, config.vm.kernel),
        )
        await _run(
            config, fleet, images, Builds(settings.builds(config), fleet, images, floor.files), desk, stop
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
        async with serving(
            config.socket, config.daemon.socket_group, _servicers(fleet, images, builds, desk)
        ):
            log.info("serving", extra={"socket": str(config.socket), "pid": os.getpid()})
            systemd.notify("READY=1")
            await stop.wait()
            systemd.notify("STOPPING=1")
        for task in (opened, building, running, warming_up):
            task.cancel()
    log.info("ended; virtual machines run on")


def _servicers(fleet: Fleet, images: OciImageStore, builds: Builds, desk: Desk) -> Servicers:
    resetting = Resetting(desk.network, fleet, desk.spares, desk.templates)
    policies = PolicyDesk(
        desk.network,
        lambda reference: fleet.get(reference).record,
        fleet.records,
        lambda sandbox_id: fleet.get(sandbox_id).reroute(),
    )
    return Servicers(
        ContainerServicer(fleet),
        ImageServicer(images, fleet),
        SystemServicer(desk.version, desk.info, desk.checks, desk.disk_usage, resetting),
        TemplateServicer(desk.templates, desk.build_templates),
        SnapshotServicer(fleet),
        VolumeServicer(fleet),
        NetworkServicer(fleet, NetworkDesk(desk.network, fleet.views, fleet.records)),
        BuildServicer(builds),
        EgressServicer(policies),
        SecurityGroupServicer(policies),
        FloatingServicer(FloatingDesk(desk.network, fleet)),
    )


def _runner(
    config: Config,
    rooms: Rooms,
    starts: RunSettings,
    facts: Facts,
    ledger: Ledger,
    files: Workers,
    tasks: asyncio.TaskGroup,
) -> Runner:
    """With all that a start can begin with: a spare, a template."""
    template_settings = settings.templates(config)
    builder = TemplateBuilder(rooms, starts, template_settings, files)
    templates = Templates(builder, rooms.snapshots, facts, ledger, starts.guest, template_settings, tasks)
    turns = Turns(parallel_starts(starts.parallel_starts))
    maker = SpareMaker(rooms, starts, settings.disk_owner(config), files)
    spares = Spares(maker, templates, ledger, turns, SpareSettings(config.template.spares), tasks)
    return Runner(rooms, starts, templates, spares, turns, files)


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
        await open_floor(config, stack)
        await stack.enter_async_context(Reaper())
        hypervisor = await stack.enter_async_context(LibvirtHypervisor(settings.libvirt(config)))
        await hypervisor.prepare()


async def _open_storage(
    config: Config, floor: Floor, stack: contextlib.AsyncExitStack, tasks: asyncio.TaskGroup
) -> tuple[LocalStorage, LocalVolumes, LocalShares]:
    storage = LocalStorage(
        config.daemon.state_dir / "storage",
        size_bytes=config.storage.writable_size_mib << 20,
        owner_of=settings.disk_owner(config),
    )
    stack.callback(storage.close)
    await storage.prepare()
    volumes = LocalVolumes(
        config.daemon.state_dir / "volumes",
        floor.database,
        size_bytes=config.storage.volume_size_mib << 20,
        owner_of=settings.disk_owner(config),
        doors=Doors(
            config.daemon.run_dir / "doors",
            owner_of=settings.disk_owner(config),
            user=settings.qemu_owner(config),
        ),
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
    return LocalShares(root, program, places, owner_of=settings.disk_owner(config))


def _networks(config: Config, floor: Floor) -> BridgeNetworks:
    pools = parse_pools(config.network.floating)
    return BridgeNetworks(settings.bridge(config), floor.database, pools=pools)


def _facts(config: Config, guest: GuestSettings, hypervisor: LibvirtHypervisor, files: Workers) -> Facts:
    async def ask() -> tuple[str, str]:
        capabilities = await hypervisor.prepare()
        return capabilities.qemu_version, capabilities.machine

    emulator = settings.libvirt(config).platform.emulator
    return Facts(guest.kernel, guest.initramfs, emulator=emulator, ask=ask, files=files)


def _accelerator(
    config: Config, rooms: Rooms, runner: Runner, files: Workers, qemu_version: str
) -> AcceleratorChooser:
    guest = runner.settings.guest
    emulator = settings.libvirt(config).platform.emulator
    key = (*(fingerprint(path) for path in (guest.kernel, guest.initramfs, emulator)), qemu_version)
    findings = Findings(config.daemon.state_dir / "accelerator.json", key, files)
    return AcceleratorChooser(
        config.vm.accel, rooms.hypervisor, rooms.dialer, guest, runner.settings.paths, findings, files
    )


def stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
