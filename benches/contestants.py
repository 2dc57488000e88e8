"""The filesystems that are compared: a plain directory, overlayfs, fuse-overlayfs, Lamina."""

import contextlib
import os

from common import TOP, lamina, mounted, sh

FUSE_OVERLAYFS_2 = os.path.join(TOP, "target/tools/bin/fuse-overlayfs")


class Source:
    """A tree in the forms the contestants take it in: directories, topmost first, and an image."""

    def __init__(self, arena, name, layers):
        self.arena, self.name, self.layers = arena, name, layers
        self.store = arena.join("store")
        os.makedirs(self.store, exist_ok=True)
        directories = [word for layer in reversed(layers) for word in ("--dir", layer)]
        sh(lamina(self.store, "layer", "build", "-t", name, *directories))

    def backing(self):
        """Where the contents lie, to be read into the page cache."""
        return [*self.layers, os.path.join(self.store, "objects")]


class Native:
    """A plain directory with the tree."""

    name = "native"

    def at(self, source, writes):
        return self._copy(source) if writes else self._itself(source)

    @contextlib.contextmanager
    def _itself(self, source):
        # Several layers: somebody must merge them, and that is a copy.
        if len(source.layers) > 1:
            with self._copy(source) as path:
                yield path
        else:
            yield source.layers[0]

    @contextlib.contextmanager
    def _copy(self, source):
        path = source.arena.fresh("native")
        for layer in reversed(source.layers):
            sh(["cp", "-aT", layer, path])
        os.sync()
        yield path
        source.arena.remove("native")


class Mounted:
    """A union over the tree with an empty upper."""

    def __init__(self, name, command):
        self.name, self._command = name, command

    @contextlib.contextmanager
    def at(self, source, _writes):
        upper, work = source.arena.fresh("upper"), source.arena.fresh("work")
        sh(["touch", "-r", source.layers[0], upper])
        target = source.arena.join("mnt")
        with mounted(self._command(source, upper, work, target), target):
            yield target
        source.arena.remove("upper")
        source.arena.remove("work")


def _overlay(program, *more):
    def command(source, upper, work, target):
        # Relative names, since 400 absolute ones are more than mount(2) takes.
        home = os.path.dirname(source.layers[0])
        lowers = ":".join(os.path.relpath(layer, home) for layer in source.layers)
        options = ",".join([f"lowerdir={lowers},upperdir={upper},workdir={work}", *more])
        return ["env", "-C", home, *program, "-o", options, target]

    return command


def _lamina(*more):
    def command(source, upper, work, target):
        return lamina(source.store, "mount", *more, "--upper", upper, "--work", work, source.name, target)

    return command


KERNEL = ["mount", "-t", "overlay", "overlay"]

# By the names that workloads use.
CONTESTANTS = {
    "native": Native(),
    "kovl": Mounted("kernel overlayfs", _overlay(KERNEL)),
    "kovl-metacopy": Mounted("the same, metacopy=on", _overlay(KERNEL, "metacopy=on,redirect_dir=on")),
    "kovl-volatile": Mounted("the same, volatile", _overlay(KERNEL, "volatile")),
    "fo1": Mounted("fuse-overlayfs 1.10", _overlay(["fuse-overlayfs"])),
    "fo2": Mounted("fuse-overlayfs 2.0", _overlay([FUSE_OVERLAYFS_2])),
    "cached": Mounted("lamina, cached", _lamina("--io", "cached", "--transport", "device")),
    "passthrough": Mounted("lamina, passthrough", _lamina("--io", "passthrough", "--transport", "device")),
    "cached-ring": Mounted("lamina, cached, io_uring", _lamina("--io", "cached", "--transport", "io-uring")),
    "passthrough-ring": Mounted("lamina, passthrough, io_uring", _lamina("--io", "passthrough", "--transport", "io-uring")),
    **{
        f"threads-{count}": Mounted(
            f"lamina, cached, {count} threads", _lamina("--io", "cached", "--transport", "device", "--threads", str(count))
        )
        for count in (1, 2, 4)
    },
    "lamina-volatile": Mounted("lamina, volatile", _lamina("--volatile")),
}

# Who takes part when a workload does not say.
LAMINA_MODES = ["cached", "passthrough", "cached-ring", "passthrough-ring"]
USUAL = ["native", "kovl", "fo1", "fo2", *LAMINA_MODES]

ENABLE_URING = "/sys/module/fuse/parameters/enable_uring"


@contextlib.contextmanager
def io_uring_enabled():
    """FUSE over io_uring is off until root turns it on; afterwards it is as it was."""
    with open(ENABLE_URING) as handle:
        before = handle.read()
    with open(ENABLE_URING, "w") as handle:
        handle.write("Y")
    try:
        yield
    finally:
        with open(ENABLE_URING, "w") as handle:
            handle.write(before)
