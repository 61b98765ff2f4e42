# SPDX-License-Identifier: Apache-2.0
"""Every command: name -> (module under hyperctl.commands, its name there, summary). Help is printed from here alone.

Aliases are Docker's further names; help does not list them.
"""

CONTAINER_TABLE = {
    "run": ("run", "run", "Create and start a container from an image or a snapshot"),
    "create": ("run", "create", "Create a container without starting it"),
    "start": ("lifecycle", "start", "Start stopped containers"),
    "stop": ("lifecycle", "stop", "Stop running containers"),
    "kill": ("lifecycle", "kill", "Send a signal to running containers"),
    "pause": ("lifecycle", "pause", "Let containers stand still"),
    "unpause": ("lifecycle", "unpause", "Let paused containers go on"),
    "hibernate": ("lifecycle", "hibernate", "Put running containers on disk and free their memory"),
    "wake": ("lifecycle", "wake", "Let hibernated containers go on where they were"),
    "rm": ("lifecycle", "rm", "Remove containers"),
    "fork": ("fork", "fork", "Clone a running container, processes and all"),
    "rollback": ("fork", "rollback", "Put a container back at one of its snapshots"),
    "ps": ("listing", "ps", "List containers"),
    "exec": ("attach", "exec", "Run a command in a running container"),
    "attach": ("attach", "attach", "Join the standard streams of a running container"),
    "logs": ("logs", "logs", "Show what a container has written"),
    "port": ("groups", "port", "Show and change where the ports of a container are published"),
    "stats": ("stats", "stats", "Show what containers use: CPU, memory, network, disks"),
    "wait": ("lifecycle", "wait", "Wait until containers stop, then print their exit codes"),
    "cp": ("copy", "cp", "Copy files between a container and this host"),
    "diff": ("changes", "diff", "List what a container has changed against its image"),
    "commit": ("changes", "commit", "Make an image of what a container has changed"),
    "export": ("archives", "export", "Write a container's root file system as a tar"),
    "inspect": ("inspect", "inspect", "Show everything about containers and images"),
}
ROOT_TABLE = CONTAINER_TABLE | {
    "build": ("build", "build", "Build an image from a Dockerfile"),
    "pull": ("registry", "pull", "Download an image from a registry"),
    "push": ("registry", "push", "Upload an image to a registry"),
    "login": ("login", "login", "Log in to a registry"),
    "search": ("search", "search", "Search a registry for images"),
    "logout": ("login", "logout", "Forget the credentials for a registry"),
    "images": ("images", "images", "List images"),
    "history": ("images", "history", "Show what an image was made of"),
    "tag": ("images", "tag", "Give an image one more name"),
    "rmi": ("images", "rmi", "Remove images"),
    "save": ("archives", "save", "Write images to a tar"),
    "load": ("archives", "load", "Take images from a tar"),
    "import": ("archives", "import", "Make an image of a root file system's tar"),
    "snapshot": ("groups", "snapshot", "Snapshots of running containers"),
    "template": ("groups", "template", "Booted guests that containers start from"),
    "volume": ("groups", "volume", "Disks that outlive containers"),
    "network": ("groups", "network", "Networks of containers, each closed to the others"),
    "egress": ("groups", "egress", "What containers may reach, and what they tried to"),
    "sg": ("groups", "sg", "Security groups: whom containers hear, and speak to"),
    "fip": ("groups", "fip", "Addresses of this host that are lent to containers"),
    "df": ("usage", "growth", "Show how large disks and volumes may become, and whether there is room"),
    "info": ("system", "info", "Show what the daemon runs with"),
    "version": ("system", "version", "Show the versions of hyper and of what it stands on"),
    "doctor": ("doctor", "doctor", "Check this host and say what is missing"),
    "daemon": ("daemon", "", "Start, stop and look at the daemon"),
    "container": ("groups", "container", "Commands on containers"),
    "image": ("groups", "image", "Commands on images"),
    "manifest": ("groups", "manifest", "Manifests in registries"),
    "system": ("groups", "system", "What takes room on the disk, and the daemon itself"),
    "completion": ("completion", "completion", "Print the completion script of a shell"),
    "__complete": ("completion", "__complete", ""),
}

CONTAINER_GROUP = {
    **CONTAINER_TABLE,
    "inspect": ("inspect", "container-inspect", "Show everything about containers"),
    "ls": CONTAINER_TABLE["ps"],
    "prune": ("prune", "container-prune", "Remove all stopped containers"),
}
CONTAINER_ALIASES = {"list": "ls", "remove": "rm"}
IMAGE_GROUP = {
    "ls": ROOT_TABLE["images"],
    **{
        name: ROOT_TABLE[name]
        for name in ("build", "pull", "push", "tag", "history", "save", "load", "import")
    },
    "rm": ROOT_TABLE["rmi"],
    "prune": ("prune", "image-prune", "Remove images that nobody uses"),
    "inspect": ("inspect", "image-inspect", "Show everything about images"),
}
IMAGE_ALIASES = {"list": "ls", "remove": "rm"}
MANIFEST_GROUP = {"inspect": ("registry", "manifest-inspect", "Show a manifest, or a list of manifests")}
SYSTEM_GROUP = {
    "df": ("usage", "df", "Show what takes room on the disk"),
    "info": ROOT_TABLE["info"],
    "prune": ("prune", "system-prune", "Remove stopped containers, and images that nobody uses"),
    "reset": ("reset", "reset", "Remove all containers and networks, and what they have of the host's"),
}
SNAPSHOT_GROUP = {
    "create": (
        "snapshots",
        "create",
        "Save a running container: memory, disk and configuration; or a volume",
    ),
    "ls": ("snapshots", "ls", "List snapshots"),
    "inspect": ("snapshots", "inspect", "Show everything about snapshots"),
    "rm": ("snapshots", "rm", "Remove snapshots"),
    "export": ("transfer", "export", "Write a snapshot to a file or a pipe"),
    "import": ("transfer", "import", "Take a snapshot from a file or a pipe"),
}
VOLUME_GROUP = {
    "create": ("volumes", "create", "Make a volume"),
    "resize": ("volumes", "resize", "Make a volume larger"),
    "ls": ("volumes", "ls", "List volumes"),
    "inspect": ("volumes", "inspect", "Show everything about volumes"),
    "rm": ("volumes", "rm", "Remove volumes"),
    "prune": ("volumes", "prune", "Remove volumes that no container has"),
    "init": ("volume_transfer", "init", "Fill a volume from a directory, a tar, a URL or a git repository"),
    "export": ("volume_transfer", "export", "Write a volume to a file or a pipe"),
    "import": ("volume_transfer", "import", "Make a volume of a file or a pipe"),
}
TEMPLATE_GROUP = {
    "ls": ("templates", "ls", "List templates"),
    "build": ("templates", "build", "Make the templates for a size of machine"),
    "rm": ("templates", "rm", "Remove templates"),
}
LIST_ALIAS = {"list": "ls"}
PORT_GROUP = {
    "show": ("ports", "show", "Show where the ports of a container are published (`hyper port CONTAINER`)"),
    "add": ("ports", "add", "Publish further ports of a running container"),
    "rm": ("ports", "rm", "Take published ports back"),
    "ls": ("ports", "ls", "List the published ports of all containers"),
}
EGRESS_GROUP = {
    "report": ("egress", "report", "List what a container tried to reach and was refused"),
    "set": ("egress", "set", "Change what a container may reach, from now on"),
    "inspect": ("egress", "inspect", "Show what containers may reach"),
}
SECURITY_GROUP_GROUP = {
    "create": ("security_groups", "create", "Make a security group"),
    "update": ("security_groups", "update", "Replace the rules of a security group"),
    "ls": ("security_groups", "ls", "List security groups"),
    "inspect": ("security_groups", "inspect", "Show everything about security groups"),
    "rm": ("security_groups", "rm", "Remove security groups"),
    "attach": ("security_groups", "attach", "Give a container further security groups"),
    "detach": ("security_groups", "detach", "Take security groups from a container"),
}
FLOATING_GROUP = {
    "allocate": ("floating", "allocate", "Take addresses out of the pools"),
    "ls": ("floating", "ls", "List the addresses that are allocated"),
    "attach": ("floating", "attach", "Lend an address to a container"),
    "detach": ("floating", "detach", "Take its address from a container"),
    "name": ("floating", "name", "Give an address a name, or take it"),
    "release": ("floating", "release", "Give addresses back to the pools"),
}
NETWORK_GROUP = {
    "create": ("networks", "create", "Make a network"),
    "ls": ("networks", "ls", "List networks"),
    "inspect": ("networks", "inspect", "Show everything about networks"),
    "rm": ("networks", "rm", "Remove networks"),
    "connect": ("networks", "connect", "Put a container on a network"),
    "disconnect": ("networks", "disconnect", "Take a container off a network"),
    "prune": ("networks", "prune", "Remove the networks that no container is on"),
}
