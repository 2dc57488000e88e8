"""Everyday work in a root: the Debian image natively, in Lamina and in the overlayfs peers."""

import os

from common import drop_caches, fixture, have, lamina, measure, mounted, progress, rounds, sh, table

LAYERS = ["1-base.tar", "2-tools.tar", "3-pruned.tar"]


def run(arena):
    source = fixture()
    store = arena.fresh("store")
    progress("building the image")
    sh(lamina(store, "layer", "build", "-t", "debian", *(os.path.join(source, name) for name in LAYERS)))
    lower = arena.fresh("lower")
    target = arena.join("mnt")
    with mounted(lamina(store, "mount", "--read-only", "debian", target), target):
        sh(["cp", "-aT", target, lower])
    roots = {"native": Native(arena, lower), "lamina": Lamina(arena, store), "kernel overlayfs": Overlay(arena, lower)}
    if have("fuse-overlayfs"):
        roots["fuse-overlayfs"] = FuseOverlay(arena, lower)

    print("## Work in a root\n")
    for title, prepare, work in WORK:
        contestants = {name: contest(root, prepare, work) for name, root in roots.items()}
        table(title, rounds(contestants), "native")


def contest(root, prepare, work):
    def contestant():
        with root.fresh() as path:
            prepare(path)
            return measure(["sh", "-euc", work], cwd=path)

    return contestant


def cold(path):
    drop_caches()


def warm(path):
    sh(["find", path, "-xdev", "-printf", "%s\\n"])


def read(path):
    sh(["sh", "-c", "find usr -xdev -type f -size -64k -exec cat {} + > /dev/null"], cwd=path)


WALK = "find . -xdev -printf '%s\\n' > /dev/null"
READ = "find usr -xdev -type f -size -64k -exec cat {} + > /dev/null"
MAKE = "mkdir new; cd new; mkdir 0 1 2 3 4; for d in *; do seq -f $d/%g 1000; done | xargs touch; rm -r *"

WORK = [
    ("Walk with stat, cold", cold, WALK),
    ("Walk with stat, warm", warm, WALK),
    ("Read all files up to 64 KiB, cold", cold, READ),
    ("Read all files up to 64 KiB, warm", read, READ),
    ("Create 5,000 files and remove them", warm, MAKE),
    ("Copy /usr/lib/python3.11", read, "cp -a usr/lib/python3.11 copy"),
    ("Remove /usr/lib", warm, "rm -rf usr/lib"),
    ("Change the owner of everything in /usr/lib", warm, "chown -R 1:1 usr/lib"),
    ("Append a byte to every file in /usr/lib/python3.11", read, "for f in $(find usr/lib/python3.11 -type f); do echo >> $f; done"),
    ("Start Python 20 times", read, "for i in $(seq 20); do chroot . python3 -c 'import json, subprocess'; done"),
]


class Native:
    """A copy of the tree."""

    def __init__(self, arena, lower):
        self.arena, self.lower = arena, lower

    def fresh(self):
        return self

    def __enter__(self):
        path = self.arena.fresh("native")
        sh(["cp", "-aT", self.lower, path])
        os.sync()
        return path

    def __exit__(self, *_):
        self.arena.remove("native")


class Overlay:
    """Kernel overlayfs with an empty upper."""

    def __init__(self, arena, lower):
        self.arena, self.lower = arena, lower

    def command(self, options, target):
        return ["mount", "-t", "overlay", "overlay", "-o", options, target]

    def fresh(self):
        upper, work = self.arena.fresh("upper"), self.arena.fresh("work")
        target = self.arena.join("mnt")
        options = f"lowerdir={self.lower},upperdir={upper},workdir={work}"
        return mounted(self.command(options, target), target)


class FuseOverlay(Overlay):
    """fuse-overlayfs with an empty upper."""

    def command(self, options, target):
        return ["fuse-overlayfs", "-o", options, target]


class Lamina:
    """The image with an empty upper."""

    def __init__(self, arena, store):
        self.arena, self.store = arena, store

    def fresh(self):
        upper, work = self.arena.fresh("upper"), self.arena.fresh("work")
        target = self.arena.join("mnt")
        return mounted(lamina(self.store, "mount", "--upper", upper, "--work", work, "debian", target), target)
