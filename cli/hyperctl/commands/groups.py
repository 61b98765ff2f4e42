# SPDX-License-Identifier: Apache-2.0
"""`hyper container ...` and `hyper image ...`: Docker's longer names for the same commands."""

from hyperctl import tables, tree


class ContainerGroup(tree.LazyGroup):
    table = tables.CONTAINER_GROUP


class ImageGroup(tree.LazyGroup):
    table = tables.IMAGE_GROUP


app = tree.group()
app.add_typer(tree.group(ContainerGroup, tables.ROOT_TABLE["container"][2]), name="container")
app.add_typer(tree.group(ImageGroup, tables.ROOT_TABLE["image"][2]), name="image")
