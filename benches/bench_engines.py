"""podman and buildah on a mount program: ours, both fuse-overlayfs, and the kernel's overlayfs.

A build of 20 RUN, `podman run --rm … true` 20 times, what the daemons of 50 mounted containers take of memory, and
`buildah bud` of a COPY of 130,000 files (also with the driver vfs). Each has a storage of its own with the same
image in it.
"""

import contextlib
import os
import subprocess

from common import LAMINA, TOP, fixture, have, measure, progress, rounds, sh, table

FILES = int(os.environ.get("BENCH_COPY_FILES", "130000"))
CONTAINERS = 50
RUNS = 20
LIMITS = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
FO2 = os.path.join(TOP, "target/tools/bin/fuse-overlayfs")


class Engine:
    """podman and buildah with one storage driver."""

    def __init__(self, arena, name, program=None, driver="overlay"):
        self.arena, self.name, self.program = arena, name, program
        # podman refuses a long one.
        self.runroot = f"/tmp/lamina-bench-{os.getpid()}-{name}"
        self.options = [f"--storage-driver={driver}", "--root", arena.fresh(f"{name}-root"), "--runroot", self.runroot]
        if program:
            self.options.append(f"--storage-opt=overlay.mount_program={program}")
            self.options.append("--storage-opt=overlay.mountopt=nodev")

    def podman(self, *words):
        globals_ = ["--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=none"]
        return ["podman", *self.options, *globals_, "--tmpdir", f"{self.runroot}-tmp", *words]

    def buildah(self, *words):
        return ["buildah", *self.options, *words]

    def prepare(self, archive):
        progress(f"importing the image for {self.name}")
        sh(self.podman("import", "--quiet", archive, "base"))

    def end(self):
        subprocess.run(self.podman("system", "reset", "--force"), stdout=subprocess.DEVNULL, check=False)
        for suffix in ("", "-tmp"):
            subprocess.run(["rm", "-rf", self.runroot + suffix], check=False)


def engines(arena):
    yield Engine(arena, "lamina", overlay_program(arena))
    if have("fuse-overlayfs"):
        yield Engine(arena, "fuse-overlayfs-1", "/usr/bin/fuse-overlayfs")
    if os.path.exists(FO2):
        yield Engine(arena, "fuse-overlayfs-2", FO2)
    yield Engine(arena, "overlayfs")


def overlay_program(arena):
    path = os.path.join(arena.fresh("program"), "lamina-overlay")
    os.symlink(LAMINA, path)
    return path


def run(arena):
    print("## podman and buildah\n")
    archive = archive_of(fixture())
    with contextlib.ExitStack() as stack:
        all_ = []
        for engine in engines(arena):
            stack.callback(engine.end)
            engine.prepare(archive)
            all_.append(engine)
        build(arena, all_)
        runs(all_)
        memory(all_)
    copy(arena)


def archive_of(layers):
    """The lowest layer of the Debian image."""
    return os.path.join(layers, "1-base.tar")


def build(arena, all_):
    context = arena.fresh("context")
    lines = ["FROM base"]
    for number in range(20):
        lines.append(f"RUN mkdir -p /srv/{number} && cp -r /usr/lib/locale /srv/{number}/ && rm -rf /usr/share/doc/{chr(97 + number)}*")
    with open(os.path.join(context, "Containerfile"), "w") as handle:
        handle.write("\n".join(lines) + "\n")
    words = ["build", "--quiet", "--no-cache", "--isolation=chroot", "--network=host", "--layers", "-t", "made", context]

    def contestant(engine):
        def once():
            result = measure(engine.podman(*words))
            sh(engine.podman("rmi", "--force", "made"))
            return result

        return once

    results = rounds({engine.name: contestant(engine) for engine in all_})
    table("podman build of 20 RUN", results, "overlayfs")


def runs(all_):
    def contestant(engine):
        command = engine.podman("run", "--rm", "--cgroups=enabled", "--network=none", *LIMITS, "base", "true")
        script = " && ".join([" ".join(command)] * RUNS)
        return lambda: measure(["sh", "-ec", script])

    results = rounds({engine.name: contestant(engine) for engine in all_})
    table(f"podman run --rm base true, {RUNS} times", results, "overlayfs")


def memory(all_):
    print(f"### The memory of the daemons of {CONTAINERS} mounted containers\n")
    print("Each has listed its whole root once. Proportional set size (PSS), in MiB.\n")
    print("| | all | each |\n|---|---|---|")
    for engine in all_:
        if not engine.program:
            continue
        progress(f"{CONTAINERS} containers of {engine.name}")
        names = [f"c{number}" for number in range(CONTAINERS)]
        for name in names:
            sh(engine.podman("create", "--name", name, "base", "true"))
        for name in names:
            sh(["find", sh(engine.podman("mount", name)).strip(), "-xdev", "-ls"])
        used = sum(map(pss, daemons(engine)))
        print(f"| {engine.name} | {used / 1024:.0f} | {used / 1024 / CONTAINERS:.2f} |")
        sh(engine.podman("umount", "--all"))
        sh(engine.podman("rm", "--force", "--all"))
    print(flush=True)


def daemons(engine):
    """The processes that serve the mounts of one storage."""
    root = engine.options[2]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as handle:
            line = handle.read()
            if "lowerdir=" in line and root in line:
                yield pid


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup") as handle:
        for line in handle:
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def copy(arena):
    context = arena.fresh("context")
    progress(f"making {FILES} files")
    for directory in range(FILES // 100):
        path = os.path.join(context, "files", str(directory // 100), str(directory))
        os.makedirs(path)
        for number in range(100):
            with open(os.path.join(path, str(number)), "w") as handle:
                handle.write(f"{directory} {number}\n" * 8)
    with open(os.path.join(context, "Containerfile"), "w") as handle:
        handle.write("FROM scratch\nCOPY files /files\n")
    with contextlib.ExitStack() as stack:
        contestants = {}
        for engine in [*engines(arena), Engine(arena, "vfs", driver="vfs")]:
            stack.callback(engine.end)
            contestants[engine.name] = copying(engine, context)
        results = rounds(contestants)
    table(f"buildah bud of a COPY of {FILES:,} files", results, "vfs")


def copying(engine, context):
    def once():
        result = measure(engine.buildah("bud", "--quiet", "--no-cache", "-t", "copied", context))
        sh(engine.buildah("rmi", "--force", "copied"))
        return result

    return once
