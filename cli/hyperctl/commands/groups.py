# SPDX-License-Identifier: Apache-2.0
"""The groups: `hyper container ...` and `hyper image ...` are Docker's longer names for the same commands."""

from typing import Any

from hyperctl import tables, tree


class ContainerGroup(tree.LazyGroup):
    table = tables.CONTAINER_GROUP
    aliases = tables.CONTAINER_ALIASES


class ImageGroup(tree.LazyGroup):
    table = tables.IMAGE_GROUP
    aliases = tables.IMAGE_ALIASES


class SnapshotGroup(tree.LazyGroup):
    table = tables.SNAPSHOT_GROUP
    aliases = tables.LIST_ALIAS


class TemplateGroup(tree.LazyGroup):
    table = tables.TEMPLATE_GROUP
    aliases = tables.LIST_ALIAS


class ManifestGroup(tree.LazyGroup):
    table = tables.MANIFEST_GROUP


class SystemGroup(tree.LazyGroup):
    table = tables.SYSTEM_GROUP


class VolumeGroup(tree.LazyGroup):
    table = tables.VOLUME_GROUP
    aliases = tables.LIST_ALIAS


class NetworkGroup(tree.LazyGroup):
    table = tables.NETWORK_GROUP
    aliases = tables.LIST_ALIAS


class EgressGroup(tree.LazyGroup):
    table = tables.EGRESS_GROUP


class SecurityGroupGroup(tree.LazyGroup):
    table = tables.SECURITY_GROUP_GROUP
    aliases = tables.LIST_ALIAS


class FloatingGroup(tree.LazyGroup):
    table = tables.FLOATING_GROUP
    aliases = tables.LIST_ALIAS


class PortGroup(tree.LazyGroup):
    """`hyper port CONTAINER`, as Docker has it, beside commands of our own."""

    table = tables.PORT_GROUP

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.table:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = tree.group()
app.add_typer(tree.group(ContainerGroup, tables.ROOT_TABLE["container"][2]), name="container")
app.add_typer(tree.group(ImageGroup, tables.ROOT_TABLE["image"][2]), name="image")
app.add_typer(tree.group(SnapshotGroup, tables.ROOT_TABLE["snapshot"][2]), name="snapshot")
app.add_typer(tree.group(TemplateGroup, tables.ROOT_TABLE["template"][2]), name="template")
app.add_typer(tree.group(ManifestGroup, tables.ROOT_TABLE["manifest"][2]), name="manifest")
app.add_typer(tree.group(SystemGroup, tables.ROOT_TABLE["system"][2]), name="system")
app.add_typer(tree.group(VolumeGroup, tables.ROOT_TABLE["volume"][2]), name="volume")
app.add_typer(tree.group(PortGroup, tables.CONTAINER_TABLE["port"][2]), name="port")
app.add_typer(tree.group(EgressGroup, tables.ROOT_TABLE["egress"][2]), name="egress")
app.add_typer(tree.group(SecurityGroupGroup, tables.ROOT_TABLE["sg"][2]), name="sg")
app.add_typer(tree.group(FloatingGroup, tables.ROOT_TABLE["fip"][2]), name="fip")
app.add_typer(tree.group(NetworkGroup, tables.ROOT_TABLE["network"][2]), name="network")
