"""What is timed, and the targets. Each workload is data: where it runs, what comes before, what is
run, what each phase of it is called and should reach."""

import os
import shutil

from common import TOP, drop_caches, fixture, progress, sh
from contestants import LAMINA_MODES, USUAL

WORK = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target")), "release/examples/bench-work")


class Target:
    """At most (for a rate: at least) `factor` times what `against` has."""

    def __init__(self, factor, against):
        self.factor, self.against = factor, against


class AtMost:
    """At most `limit`, whatever the others have."""

    def __init__(self, limit):
        self.limit = limit


class Row:
    """A line of the table: a phase of a workload.

    `mode`: the I/O mode of Lamina that has to reach the targets; None: the one it takes by itself.
    """

    def __init__(self, title, *targets, mode=None, unit="s"):
        self.title, self.targets, self.mode, self.unit = title, targets, mode, unit


class Workload:
    """`prepare(path, source)` comes before, untimed, and then so many GiB of `memory` are used once: a host takes
    back what is free, and whoever needs it first would pay for that. `command(path)` is run in the mount; what
    it prints as `phase number` counts, or else the time it took, as the phase "total"."""

    def __init__(self, key, source, command, rows, prepare=None, writes=True, who=USUAL, filesystem="ext4", memory=1):
        self.key, self.source, self.command, self.rows = key, source, command, rows
        self.prepare, self.writes, self.who, self.filesystem = prepare, writes, who, filesystem
        self.memory = memory


def tool(*words):
    return lambda path: [WORK, *words]


def shell(script):
    return lambda path: ["sh", "-euc", script]


def inside(script):
    """The same with devices there, which unions in FUSE may not have (nodev)."""
    return lambda path: ["unshare", "-m", "sh", "-euc", "mount --rbind /dev dev\n" + script]


def cold(path, source):
    drop_caches()


def backing_warm(path, source):
    """Nothing of the mount is cached, but the files behind it are."""
    drop_caches()
    for directory in source.backing():
        sh(["sh", "-c", "find . -type f -exec cat {} + > /dev/null"], cwd=directory)


def walked(path, source):
    sh([WORK, "walk", ".", "2"], cwd=path)


def was_read(path, source):
    sh([WORK, "read-small", ".", "2"], cwd=path)


def ran(command):
    return lambda path, source: sh(command(path), cwd=path)


VS_KOVL_AND_FO2 = [Target(4, "kovl"), Target(0.5, "fo2")]
REAL_WORK = [Target(1.5, "kovl"), Target(0.6, "fo2")]

CHROOT = "PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot . "
PYTHON = inside(f"for i in $(seq 20); do {CHROOT} python3 -c 'import json, subprocess, argparse'; done")
GIT_STATUS = inside(f"for i in 1 2 3 4 5; do {CHROOT} git -C /srv/repository status --short; done")
DPKG = f"{CHROOT} sh -c 'dpkg --force-depends -i /srv/bench/debs/*.deb' > /dev/null 2>&1"
LUA = "tar -xf srv/bench/lua.tar.gz -C srv; " + CHROOT + "make -s -j2 -C /srv/lua-5.4.4 linux > /dev/null 2>&1"
PIP = (
    CHROOT + "sh -c 'python3 $(ls /srv/bench/wheels/pip-*.whl)/pip install -q --no-index --find-links /srv/bench/wheels "
    "--target /srv/site django sqlalchemy requests sympy' 2>&1"
)
SQLITE = """
import sqlite3
base = sqlite3.connect("srv/sqlite.db")
base.execute("create table t (id integer primary key, v text)")
for number in range(300):
    base.execute("insert into t (v) values (?)", ("x" * 100,))
    base.commit()
for number in range(300):
    base.execute("update t set v = ? where id = ?", ("y" * 200, number))
    base.commit()
"""
PGBENCH = r"""
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
as() { setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/tmp "$@"; }
as $bin/pg_ctl -s -w -D srv/pg -o "-k /tmp -c listen_addresses= -p 54329" -l /dev/null start
as pgbench -n -h /tmp -p 54329 -c 4 -t 500 postgres 2>/dev/null | sed -n 's/^tps = \([0-9.]*\).*/transactions \1/p'
as $bin/pg_ctl -s -w -m fast -D srv/pg stop
"""
DBENCH = "dbench -t 10 -D . 4 | sed -n 's/^Throughput \\([0-9.]*\\) .*/rate \\1/p'"

WORKLOADS = [
    Workload(
        "walk-warm", "root", tool("walk", ".", "5"),
        {"walk": Row("walk with stat ×5, warm", Target(0.7, "kovl"))},
        prepare=walked, writes=False,
    ),
    Workload(
        "walk-cold", "root", tool("walk", ".", "1"),
        {"walk": Row("walk with stat, cold", Target(1.8, "kovl"))},
        prepare=cold, writes=False,
    ),
    Workload(
        "walk-100", "100 layers", tool("walk", ".", "1"),
        {"walk": Row("walk, 100 layers of 100 files, cold", Target(0.2, "kovl"))},
        prepare=cold, writes=False,
    ),
    Workload(
        "walk-400", "400 layers", tool("walk", ".", "1"),
        {"walk": Row("walk, 400 layers of 100 files, cold", Target(0.03, "kovl"))},
        prepare=cold, writes=False,
    ),
    Workload(
        "read-warm", "root", tool("read-small", ".", "3"),
        {"read-small": Row("open, read, close of all small files ×3, warm", Target(0.9, "kovl"), mode="cached")},
        prepare=was_read, writes=False,
    ),
    Workload(
        "read-cold", "root", tool("read-small", ".", "1"),
        {"read-small": Row("the same ×1, cold, files behind it in memory", *[Target(4, "kovl"), Target(0.5, "fo2")])},
        prepare=backing_warm, writes=False,
    ),
    Workload(
        "git-status", "root", GIT_STATUS,
        {"total": Row("git status ×5, warm", Target(0.9, "kovl"), mode="cached")},
        prepare=ran(GIT_STATUS),
    ),
    Workload(
        "python", "root", PYTHON,
        {"total": Row("start Python ×20", Target(0.9, "kovl"), mode="cached")},
        prepare=ran(PYTHON),
    ),
    Workload(
        "files", "root", tool("files", ".", "5000"),
        {
            "create": Row("create 5,000 small files", *VS_KOVL_AND_FO2),
            "rename": Row("rename them", *VS_KOVL_AND_FO2),
            "unlink": Row("unlink them", *VS_KOVL_AND_FO2),
        },
    ),
    Workload(
        "untar", "root", shell(f"s() {{ date +%s.%N; }}; a=$(s); tar -xf srv/bench/files.tar -C srv; b=$(s); {WORK} remove srv/files;"
                               'echo untar $(echo "$b - $a" | bc)'),
        {
            "untar": Row("untar of 10,000 files", *VS_KOVL_AND_FO2),
            "remove": Row("rm -r of them", *VS_KOVL_AND_FO2),
        },
    ),
    Workload(
        "remove", "root", tool("remove", "usr/lib"),
        {"remove": Row("rm -r of a lower tree (/usr/lib)", *VS_KOVL_AND_FO2)},
        prepare=walked,
    ),
    Workload(
        "rename-dir", "root", tool("rename", "usr", "renamed"),
        {"rename": Row("rename of a lower directory (/usr)", AtMost(0.010))},
        # rename(2) is EXDEV on the others, which have to copy.
        who=["native", "kovl-metacopy", *LAMINA_MODES],
        prepare=walked,
    ),
    Workload(
        "move-dir", "root", shell("mv usr renamed"),
        {"total": Row("mv of a lower directory (/usr)")},
        prepare=walked,
    ),
    Workload(
        "append-small", "root", tool("append-small", "usr", "2000"),
        {"append-small": Row("append a byte to 2,000 small lower files", Target(2, "kovl"))},
        prepare=was_read, who=[*USUAL, "kovl-volatile", "lamina-volatile"],
    ),
    Workload(
        "chmod", "root", tool("chmod", ".", "10000"),
        {"chmod": Row("chmod of 10,000 lower files", Target(1.5, "kovl-metacopy"))},
        prepare=walked, who=[*USUAL, "kovl-metacopy"],
    ),
    Workload(
        "large", "large", shell(f"{WORK} read-first large; {WORK} write-new new {1 << 28}; {WORK} large new"),
        {
            "read-first": Row("first read of a lower file of 1 GiB", Target(2, "kovl"), mode="cached"),
            "write-new": Row("write a new file of 256 MiB", Target(2.5, "kovl"), mode="cached"),
            "read": Row("read it", Target(1.1, "kovl")),
            "random-read": Row("200,000 reads of 4 KiB", Target(1.1, "kovl")),
            "mmap-read": Row("touch each page of a mapping", Target(1.1, "kovl")),
            "rewrite": Row("write it anew, in place", Target(1.1, "kovl"), mode="passthrough"),
            "random-write": Row("50,000 writes of 4 KiB", Target(1.1, "kovl")),
        },
        prepare=backing_warm, memory=6,
    ),
    *(
        Workload(
            f"append-large-{filesystem}", "large", tool("append", "large"),
            {"append": Row(f"append a byte to a lower file of 1 GiB, {filesystem}", *targets)},
            prepare=backing_warm, filesystem=filesystem,
            who=[*USUAL, "kovl-volatile", "lamina-volatile"], memory=6,
        )
        for filesystem, targets in [("ext4", [Target(1.1, "kovl")]), ("btrfs", [AtMost(0.05)]), ("xfs", [AtMost(0.05)])]
        if shutil.which("mkfs." + filesystem, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    ),
    Workload("dpkg", "root", inside(DPKG), {"total": Row("dpkg -i of 56 packages", *REAL_WORK)}),
    Workload("make", "root", inside(LUA), {"total": Row("untar and make -j2 of Lua", *REAL_WORK)}),
    Workload("pip", "root", inside(PIP), {"total": Row("pip install of Django and others", *REAL_WORK)}),
    Workload(
        "sqlite", "root", lambda path: ["python3", "-c", SQLITE],
        {"total": Row("SQLite, 600 transactions with fsync", *REAL_WORK)},
    ),
    Workload(
        "pgbench", "root", shell(PGBENCH),
        {"transactions": Row("pgbench, 4 clients, fsync", Target(1 / 1.5, "kovl"), Target(1 / 0.6, "fo2"), unit="/s")},
    ),
    Workload(
        "dbench", "root", shell(DBENCH),
        {"rate": Row("dbench, 4 clients", Target(0.3, "kovl"), Target(3, "fo2"), unit="MB/s")},
    ),
]


def make_root(arena):
    """The Debian image with what the workloads need in it, as one directory."""
    progress("making the root")
    root = arena.fresh("root")
    image = fixture()
    for layer in ("1-base.tar", "2-tools.tar"):
        sh(["tar", "--exclude=./dev/*", "--xattrs", "-xpf", os.path.join(image, layer)], cwd=root)
    # A name that is no UTF-8 is there, which fuse-overlayfs 2.0 answers with EIO.
    sh(["sh", "-euc", "rm -r srv/odd"], cwd=root)
    bench = os.path.join(root, "srv/bench")
    sh(["cp", "-a", _bench_fixture(), bench])
    files = os.path.join(root, "srv/files")
    os.mkdir(files)
    sh(["sh", "-euc", f"find usr/share usr/lib/python3* usr/include -xdev -type f -size -64k | sort | head -n 10000 | "
        f"cpio -pdm --quiet {files}; tar -cf srv/bench/files.tar -C srv files; rm -r srv/files"], cwd=root)
    repository = os.path.join(root, "srv/repository")
    sh(["sh", "-euc", f"mkdir {repository}; cp -a usr/include usr/lib/python3.11 usr/lib/git-core usr/share/perl {repository}; "
        f"cd {repository}; git init -q .; git add .; git -c user.name=a -c user.email=a@b commit -qm all; git status > /dev/null"],
       cwd=root)
    _make_database(os.path.join(root, "srv/pg"))
    os.chmod(os.path.join(root, "srv"), 0o777)
    os.sync()
    return [root]


def _bench_fixture():
    return sh([os.path.join(TOP, "scripts/fixture-bench")]).strip().splitlines()[-1]


def _make_database(data):
    os.mkdir(data)
    os.chown(data, 65534, 65534)
    script = PGBENCH.replace("pgbench -n -h", "pgbench -q -i -s 2 -h").replace("-c 4 -t 500 ", "")
    sh(["sh", "-euc", script.replace("as $bin/pg_ctl", "as $bin/initdb -A trust -D srv/pg -U nobody > /dev/null; as $bin/pg_ctl", 1)],
       cwd=os.path.dirname(os.path.dirname(data)))


def make_large(arena):
    """A directory with one file of 1 GiB that cannot be compressed."""
    progress("making a file of 1 GiB")
    directory = arena.fresh("lower-large")
    sh(["sh", "-c", "head -c 1G /dev/urandom > large"], cwd=directory)
    return [directory]


def make_layers(count):
    def make(arena):
        progress(f"making {count} layers")
        layers = []
        for number in range(count):
            layer = arena.fresh(f"layers/{number}")
            for directory in range(10):
                os.mkdir(os.path.join(layer, f"d{directory}"))
                for file in range(10):
                    with open(os.path.join(layer, f"d{directory}/layer{number}-file{file}"), "w") as handle:
                        handle.write(f"{number} {directory} {file}")
            layers.insert(0, layer)
        return layers

    return make


SOURCES = {
    "root": make_root,
    "large": make_large,
    "100 layers": make_layers(100),
    "400 layers": make_layers(400),
}
