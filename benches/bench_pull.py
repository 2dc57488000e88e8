"""Images from a registry on loopback, ready to be used: Lamina, podman, containerd, and skopeo with umoci.

The image is a Debian of 500 MB in five layers, packed by gzip. Each starts with nothing and ends with a root
filesystem that a program can be run in. Then a second image that shares the lower three layers; at the end the disk
that ten builds of one image take, each with a tenth of its files changed.
"""

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time

from bench_import import alter
from common import ROUNDS, Run, fixture, have, lamina, progress, rounds, sh, table
from layout import Layout

BASE = ["1-base.tar", "2-tools.tar", "3-pruned.tar"]
BUILDS = 10


def run(arena):
    source = fixture()
    print("## Pull\n")
    with registry(arena) as address:
        progress("making images")
        publish(arena, source, address)
        with containerd(arena) as daemon:
            pullers = [Lamina(arena, address), Podman(arena, address), Umoci(arena, address)]
            if daemon:
                pullers.append(Containerd(arena, address, daemon))
            pullers = [puller for puller in pullers if have(puller.program)]
            first(pullers)
            second(pullers)
            builds([puller for puller in pullers if puller.shares])


@contextlib.contextmanager
def registry(arena):
    """Debian's docker-registry on a port of its own."""
    config = os.path.join(arena.fresh("registry"), "config.yml")
    with open(config, "w") as handle:
        handle.write(
            "version: 0.1\nlog: {level: info}\nhttp: {addr: '127.0.0.1:0'}\n"
            f"storage: {{filesystem: {{rootdirectory: {arena.join('registry/data')}}}}}\n"
        )
    command = ["docker-registry", "serve", config]
    log = open(arena.join("registry/log"), "w+")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as child:
        try:
            yield listening(arena.join("registry/log"))
        finally:
            child.kill()
            log.close()


def listening(log):
    for _ in range(200):
        with open(log) as handle:
            text = handle.read()
        if "listening on " in text:
            return text.split("listening on ", 1)[1].split('"')[0].split(",")[0].strip()
        time.sleep(0.05)
    raise RuntimeError(f"docker-registry does not start:\n{text}")


@contextlib.contextmanager
def containerd(arena):
    """A containerd of this run's own; its socket, or None if it is not installed."""
    if not have("containerd"):
        yield None
        return
    root = arena.fresh("containerd")
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="bench-ctr.") as state:
        socket = os.path.join(state, "s")
        with open(os.path.join(state, "config.toml"), "w") as handle:
            handle.write(
                f'version = 2\nroot = "{root}"\nstate = "{state}/state"\n'
                'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                f'[grpc]\naddress = "{socket}"\n'
            )
        log = open(os.path.join(state, "log"), "w")
        command = ["containerd", "--config", os.path.join(state, "config.toml")]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as child:
            try:
                wait_for(socket)
                yield socket
            finally:
                child.terminate()
                child.wait()
                log.close()


def wait_for(path):
    for _ in range(200):
        if os.path.exists(path) and subprocess.run(["ctr", "-a", path, "version"], capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    raise RuntimeError(f"containerd does not listen on {path}")


def publish(arena, source, address):
    """Images app:1, app:2 and build:0 to build:9."""
    inputs = arena.fresh("inputs")
    layers = [shutil.copy(os.path.join(source, name), inputs) for name in BASE]
    layout = Layout(arena.fresh("layout"))
    for version in (1, 2):
        app = application(layers[1], os.path.join(inputs, f"app-{version}.tar"), version)
        config = settings(os.path.join(inputs, f"config-{version}.tar"), version)
        layout.add(f"app-{version}", [*layers, app, config])
    for build in range(BUILDS):
        progress(f"build {build}")
        tar = os.path.join(inputs, f"build-{build}.tar")
        alter(layers[0], tar, "cat", build)
        layout.add(f"build-{build}", [tar])
        os.unlink(tar)
        os.unlink(tar + ".gz")
    tags = [f"app-{version}" for version in (1, 2)] + [f"build-{build}" for build in range(BUILDS)]
    for tag in tags:
        name, _, version = tag.partition("-")
        copy = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
        sh([*copy, f"oci:{layout.path}:{tag}", f"docker://{address}/bench/{name}:{version}"])
    arena.remove("layout")
    arena.remove("inputs")


def application(source, target, version, limit=40 << 20):
    """An application of 40 MB, of files that no other layer has."""
    mark = f"version {version}\n".encode()
    size = 0
    with tarfile.open(source) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for member in old:
            if size >= limit:
                break
            if not member.isreg() or member.issparse() or not 1000 < member.size < 1 << 20:
                continue
            data = old.extractfile(member).read() + mark
            entry = tarfile.TarInfo(f"opt/app/{member.name.lstrip('./')}")
            entry.size, entry.mode = len(data), 0o644
            new.addfile(entry, io.BytesIO(data))
            size += len(data)
    return target


def settings(target, version):
    """A layer of fifty small files."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for number in range(50):
            data = f"version {version}, setting {number}\n".encode()
            entry = tarfile.TarInfo(f"etc/app/{number}.conf")
            entry.size, entry.mode = len(data), 0o644
            new.addfile(entry, io.BytesIO(data))
    return target


class Puller:
    """A program that gets images from a registry and makes root filesystems of them."""

    # Whether several images share what they have in common.
    shares = True

    def __init__(self, arena, address):
        self.arena, self.address = arena, address
        self.root = arena.join(self.name.replace(" ", "-"))

    def image(self, tag):
        return f"{self.address}/bench/{tag}"

    def begin(self):
        """Nothing is there."""
        self.arena.fresh(os.path.basename(self.root))

    def end(self):
        self.arena.remove(os.path.basename(self.root))

    def store(self):
        """Where images are."""
        return self.root


class Lamina(Puller):
    name = program = "lamina"

    def __init__(self, arena, address):
        super().__init__(arena, address)
        self.program = lamina("x")[0]

    def ready(self, tag):
        sh(lamina(self.root, "pull", "--plain-http", "-q", self.image(tag)))
        target = self.arena.fresh("mnt")
        sh(lamina(self.root, "mount", self.image(tag), target))
        return target

    def done(self, _tag, target):
        sh(lamina(self.root, "umount", target))


class Podman(Puller):
    name = program = "podman"

    def begin(self):
        super().begin()
        # podman refuses a longer path for this.
        self.run = tempfile.mkdtemp(prefix="bench-run.")

    def command(self, *words):
        options = ["--root", self.root, "--runroot", self.run, "--storage-driver", "overlay", "--events-backend=none"]
        return ["podman", *options, *words]

    def ready(self, tag):
        sh(self.command("pull", "-q", "--tls-verify=false", self.image(tag)))
        return sh(self.command("image", "mount", self.image(tag))).strip()

    def done(self, tag, _target):
        sh(self.command("image", "unmount", self.image(tag)))

    def end(self):
        with open("/proc/self/mounts") as handle:
            for line in reversed(handle.readlines()):
                if line.split()[1].startswith(self.root):
                    sh(["umount", line.split()[1]])
        super().end()
        shutil.rmtree(self.run, ignore_errors=True)


class Umoci(Puller):
    name, program = "skopeo + umoci", "umoci"
    shares = False

    def ready(self, tag):
        layout = os.path.join(self.root, "layout")
        bundle = os.path.join(self.root, tag.replace(":", "-"))
        copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false"]
        sh([*copy, f"docker://{self.image(tag)}", f"oci:{layout}:it"])
        sh(["umoci", "unpack", "--image", f"{layout}:it", bundle])
        return os.path.join(bundle, "rootfs")

    def done(self, tag, target):
        pass


class Containerd(Puller):
    name, program = "containerd", "ctr"

    def __init__(self, arena, address, socket):
        super().__init__(arena, address)
        self.socket = socket

    def command(self, *words):
        return ["ctr", "-a", self.socket, *words]

    def store(self):
        return self.arena.join("containerd")

    def begin(self):
        images = sh(self.command("images", "ls", "-q")).split()
        if images:
            sh(self.command("images", "rm", "--sync", *images))
        # What nobody needs goes when it is looked for.
        sh(self.command("content", "prune", "references"))

    def end(self):
        self.begin()

    def ready(self, tag):
        sh(self.command("images", "pull", "--plain-http", self.image(tag)))
        target = self.arena.fresh("ctr-mnt")
        sh(self.command("images", "mount", self.image(tag), target))
        return target

    def done(self, _tag, target):
        sh(self.command("images", "unmount", "--rm", target))


def timed(puller, tag):
    start = time.perf_counter()
    target = puller.ready(tag)
    with open(os.path.join(target, "etc/app/7.conf")) as handle:
        handle.read()
    seconds = time.perf_counter() - start
    puller.done(tag, target)
    return seconds


def first(pullers):
    def contestant(puller):
        def contest():
            puller.begin()
            os.sync()
            try:
                return Run(timed(puller, "app:1"), 0)
            finally:
                puller.end()

        return contest

    results = rounds({puller.name: contestant(puller) for puller in pullers})
    table("Pull an image of 500 MB in five layers, until its root can be used", results, "lamina")


def received():
    """Bytes that came by loopback."""
    with open("/proc/net/dev") as handle:
        lines = [line.split() for line in handle if line.strip().startswith("lo:")]
    return int(lines[0][1])


def taken(path):
    """Bytes on the disk."""
    os.sync()
    # containerd goes on removing what it does not need: what is gone meanwhile is no failure.
    command = ["du", "-sx", "--block-size=1", path]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return int(said.stdout.split()[0])


def second(pullers):
    rows = {puller.name: [] for puller in pullers}
    for number in range(ROUNDS):
        for puller in pullers:
            progress(f"round {number + 1}: {puller.name}")
            puller.begin()
            timed(puller, "app:1")
            disk, network = taken(puller.store()), received()
            seconds = timed(puller, "app:2")
            network = received() - network
            rows[puller.name].append((seconds, network, taken(puller.store()) - disk))
            puller.end()
    print("### A second image that shares the lower three of its five layers\n")
    print("| | seconds | × lamina | MB by the network | MB on the disk |\n|---|---|---|---|---|")
    base = statistics.median(row[0] for row in rows["lamina"])
    for name, runs in rows.items():
        seconds, network, disk = (statistics.median(column) for column in zip(*runs))
        print(f"| {name} | {seconds:.3f} | {seconds / base:.2f} | {network / 1e6:.1f} | {disk / 1e6:.1f} |")
    print(flush=True)


def builds(pullers):
    print(f"### The disk that {BUILDS} builds of an image take\n")
    print("Each is one layer, of which a tenth of the files differ from those of the others.\n")
    print("| | MB for one | MB for all | × one |\n|---|---|---|---|")
    for puller in pullers:
        progress(puller.name)
        puller.begin()
        empty = taken(puller.store())
        sizes = []
        for build in range(BUILDS):
            tag = f"build:{build}"
            puller.done(tag, puller.ready(tag))
            if build in (0, BUILDS - 1):
                sizes.append(taken(puller.store()) - empty)
        puller.end()
        print(f"| {puller.name} | {sizes[0] / 1e6:.0f} | {sizes[1] / 1e6:.0f} | {sizes[1] / sizes[0]:.2f} |", flush=True)
    print(flush=True)
