# SPDX-License-Identifier: Apache-2.0
"""`hyper commit`: its flags, and whatever a file can be, seen from the inside of a container of the image."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Hyper, wait_until

BUSYBOX = "test.local/busybox"
COMMIT_TIMEOUT_S = 200.0
HOLE_BYTES = 16 << 20
# Makes what a shell has no words for.
PROGRAM = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MUST(what) if ((what) < 0) { perror(#what); return 1; }

int main(int count, char **words) {
    char value[64];
    if (count > 1) { /* tells */
        for (int i = 1; i < count; i++) {
            struct stat about;
            MUST(lstat(words[i], &about));
            printf("%s mode=%o links=%d size=%ld time=%ld.%09ld device=%lx", words[i], about.st_mode,
                S_ISDIR(about.st_mode) ? 0 : (int)about.st_nlink, S_ISDIR(about.st_mode) ? 0 : (long)about.st_size,
                (long)about.st_mtim.tv_sec, about.st_mtim.tv_nsec, (long)about.st_rdev);
            for (const char **name = (const char *[]){"user.colour", "security.capability", 0}; *name; name++) {
                int size = lgetxattr(words[i], *name, value, sizeof value);
                for (int at = 0; at < size; at++) printf("%s%02x", at ? "" : " attribute=", value[at] & 255);
            }
            printf("\n");
        }
        return 0;
    }
    unsigned capability[5] = {0x02000001, 1 << 10, 0, 0, 0};
    struct timespec times[2] = {{1234567890, 3456780}, {1234567890, 3456780}};
    struct sockaddr_un name = {AF_UNIX, "/odd/socket"};
    MUST(mkdir("/odd", 0711));
    int file = open("/odd/file", O_CREAT | O_WRONLY, 04755);
    MUST(file);
    MUST(write(file, "x", 1));
    MUST(fchmod(file, 04755));
    MUST(fsetxattr(file, "user.colour", "blue", 4, 0));
    MUST(futimens(file, times));
    MUST(link("/odd/file", "/odd/twin"));
    int able = open("/odd/able", O_CREAT | O_WRONLY, 0755);
    MUST(able);
    MUST(fsetxattr(able, "security.capability", capability, 20, 0));
    int sparse = open("/odd/sparse", O_CREAT | O_WRONLY, 0600);
    MUST(sparse);
    MUST(pwrite(sparse, "end", 3, HOLE));
    MUST(mknod("/odd/null", S_IFCHR | 0666, makedev(1, 3)));
    MUST(mknod("/odd/disk", S_IFBLK | 0640, makedev(250, 70000)));
    MUST(mkfifo("/odd/pipe", 0620));
    MUST(symlink("nowhere", "/odd/link"));
    MUST(bind(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, sizeof name));
    return 0;
}
"""
ODD = ("file", "twin", "able", "sparse", "null", "disk", "pipe", "link")
# Directories that are others now, a directory for a file, a file for a directory, a tree that was and is no more.
REPLACED = (
    "rm -rf /home && mkdir -m 700 /home && echo new > /home/mine && rm /etc/group && mkdir /etc/group && "
    "echo in > /etc/group/file && rm -rf /usr && echo file > /usr && mkdir /gone && touch /gone/x && rm -r /gone"
)


@pytest.fixture
def image(host: Hyper, name: str) -> Iterator[str]:
    image = f"test.local/{name}"
    yield image
    images = host.ok("images", "-q", image).split()
    if images:
        host.ok("rmi", "-f", *images)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("program")
    (place / "odd.c").write_text(PROGRAM)
    command = ["gcc", "-static", "-Os", f"-DHOLE={HOLE_BYTES}", "-o", "oddities", "odd.c"]
    subprocess.run(command, check=True, cwd=place)
    return place / "oddities"


def commit(host: Hyper, *arguments: str) -> str:
    return host.ok("commit", *arguments, timeout_s=COMMIT_TIMEOUT_S)


def layers(host: Hyper, image: str) -> list[str]:
    found: list[str] = json.loads(host.ok("inspect", "-f", "{{json .RootFS.Layers}}", image))
    return found


def test_whatever_a_file_can_be_comes_back_as_it_was_but_sockets(
    host: Hyper, name: str, image: str, program: Path
):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    host.ok("cp", str(program), f"{name}:/oddities")
    host.ok("exec", name, "/oddities")
    tell = ["/oddities", "/odd", *(f"/odd/{each}" for each in ODD)]
    before = host.ok("exec", name, *tell)
    assert "time=1234567890.003456780 device=0 attribute=626c7565" in before
    assert "mode=104755 links=2" in before
    assert "attribute=0100000200040000" in before
    summed = host.ok("exec", name, "sha256sum", "/odd/sparse")
    commit(host, name, image)

    assert host.ok("run", "--rm", image, *tell) == before
    assert host.ok("run", "--rm", image, "sha256sum", "/odd/sparse") == summed
    assert sorted(host.ok("run", "--rm", image, "ls", "/odd").split()) == sorted(ODD)
    assert "socket" in host.ok("exec", name, "ls", "/odd").split()


def test_what_was_replaced_hides_what_was_there(host: Hyper, name: str, image: str):
    host.ok("run", "--name", name, BUSYBOX, "sh", "-c", REPLACED)
    commit(host, name, image)
    asked = "ls -A /home; stat -c %a /home; cat /etc/group/file /usr; ls -d /gone"
    finished = host.run("run", "--rm", image, "sh", "-c", asked)
    assert finished.stdout.decode().split() == ["mine", "700", "in", "file"]
    assert b"/gone" in finished.stderr


def test_one_state_is_one_layer_however_often_it_is_committed(
    host: Hyper, name: str, image: str, program: Path
):
    host.ok("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    host.ok("cp", str(program), f"{name}:/oddities")
    host.ok("exec", name, "/oddities")
    host.ok("exec", name, "sh", "-c", REPLACED)
    commit(host, name, f"{image}:paused")
    commit(host, "--no-pause", name, f"{image}:going")
    host.ok("stop", "-t", "0", name)
    commit(host, name, f"{image}:stopped")
    assert (
        layers(host, f"{image}:paused") == layers(host, f"{image}:going") == layers(host, f"{image}:stopped")
    )


CHANGES = {
    "CMD": ('CMD ["cat", "/note"]', ("Cmd", ["cat", "/note"])),
    "ENTRYPOINT": ('ENTRYPOINT ["env", "-u", "NONE"]', ("Entrypoint", ["env", "-u", "NONE"])),
    "ENV": ("ENV COLOUR=blue SIZE='so big'", ("Env", ["COLOUR=blue", "SIZE=so big"])),
    "EXPOSE": ("EXPOSE 80 53/udp", ("ExposedPorts", {"80/tcp": {}, "53/udp": {}})),
    "HEALTHCHECK": (
        "HEALTHCHECK --interval=7s --retries=2 CMD true",
        ("Healthcheck", {"Test": ["CMD-SHELL", "true"], "Interval": 7_000_000_000, "Retries": 2}),
    ),
    "LABEL": ("LABEL owner=me", ("Labels", {"owner": "me"})),
    "STOPSIGNAL": ("STOPSIGNAL SIGUSR1", ("StopSignal", "SIGUSR1")),
    "USER": ("USER 7:8", ("User", "7:8")),
    "VOLUME": ('VOLUME ["/data"]', ("Volumes", {"/data": {}})),
    "WORKDIR": ("WORKDIR /work", ("WorkingDir", "/work")),
}


def test_who_made_it_and_why_and_each_instruction_that_changes_it(host: Hyper, name: str, image: str):
    host.ok("run", "--name", name, BUSYBOX, "sh", "-c", "mkdir /work && echo noted > /note")
    changes = [word for line, _ in CHANGES.values() for word in ("-c", line)]
    image_id = commit(host, "-a", "me <me@example.org>", "-m", "a note", *changes, name, f"{image}:1")
    (shown,) = json.loads(host.ok("inspect", f"{image}:1"))

    assert shown["Id"] == image_id
    assert (shown["Author"], shown["Comment"]) == ("me <me@example.org>", "a note")
    for line, (key, value) in CHANGES.values():
        found = shown["Config"][key]
        if key == "Env":
            assert set(value) <= set(found), line
        else:
            assert found == value, line
    newest = json.loads(host.ok("history", "--no-trunc", "--format", "json", f"{image}:1").splitlines()[0])
    assert newest["Comment"] == "a note"
    ran = host.ok("run", "--rm", f"{image}:1", "sh", "-c", "cat /note; pwd; id -u; id -g; echo $COLOUR $SIZE")
    assert ran.split("\n") == ["noted", "/work", "7", "8", "blue so big"]


@pytest.mark.parametrize("line", ["RUN true", "COPY a b", "FROM x", "NOTHING x", "EXPOSE x"])
def test_an_instruction_that_changes_no_image_is_refused(host: Hyper, name: str, image: str, line: str):
    host.ok("create", "--name", name, BUSYBOX)
    finished = host.run("commit", "-c", line, name, image)
    assert finished.returncode in (2, 9)
    assert line.encode() in finished.stderr
    assert not host.ok("images", "-q", image)


def test_processes_stand_still_for_a_commit_and_go_on_after_it(host: Hyper, name: str, image: str):
    """Of two files that grow by turns one is read long before the other."""
    grows = "head -c 6000000 /dev/urandom > /m-big; while :; do echo >> /a-first; echo >> /z-last; done"
    host.ok("run", "-d", "--name", name, BUSYBOX, "sh", "-c", grows)
    sizes = ("stat", "-c", "%s", "/a-first", "/z-last")
    wait_until(lambda: host.run("exec", name, *sizes).returncode == 0, "it writes")
    commit(host, name, f"{image}:still")
    first, last = map(int, host.ok("run", "--rm", f"{image}:still", *sizes).split())
    assert 0 < last <= first <= last + 1
    wait_until(lambda: int(host.ok("exec", name, *sizes).split()[0]) > first, "it goes on")
    commit(host, "--no-pause", name, f"{image}:torn")
    first, last = map(int, host.ok("run", "--rm", f"{image}:torn", *sizes).split())
    assert last > first + 1
