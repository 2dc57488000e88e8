"""How much memory the daemon of a mount takes: idle, and when a tree of 200,000 entries was walked.

Resident memory is what `ps` and `top` show. Part of it belongs to the page cache: the mapped index of an image, and
the program, which all mounts have together and the kernel takes back when it needs the room. What was changed is the
daemon's own.
"""

import io
import os
import tarfile

from common import progress, sh
from contestants import CONTESTANTS, Source, io_uring_enabled
from workloads import WORK

DIRECTORIES, FILES = 2_000, 99
IDLE, WALKED = 8, 30  # MiB: the targets


def run(arena):
    progress("making 200,000 files")
    directory = arena.fresh("lower")
    archive = arena.join("wide.tar")
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(DIRECTORIES * FILES):
            entry = tarfile.TarInfo(f"d{number % DIRECTORIES}/some-file-{number}")
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"%04d" % (number % 10_000)))
    sh(["tar", "-xf", archive], cwd=directory)
    os.unlink(archive)
    source = Source(arena, "wide", [directory])
    print("## Memory\n")
    print(f"MiB of the daemon over {DIRECTORIES * (FILES + 1):,} entries: resident, and its own in brackets.\n")
    print(f"| | idle (target {IDLE}) | after a walk (target {WALKED}) |\n|---|---|---|")
    with io_uring_enabled():
        for who in ("fo1", "fo2", "cached", "passthrough", "cached-ring", "passthrough-ring"):
            contestant = CONTESTANTS[who]
            progress(contestant.name)
            with contestant.at(source, True) as path:
                process = daemon(path)
                idle = memory(process)
                sh([WORK, "walk", ".", "2"], cwd=path)
                walked = memory(process)
            print(f"| {contestant.name} | {cell(idle, IDLE)} | {cell(walked, WALKED)} |", flush=True)
    print()


def daemon(target):
    """The process that serves a mount: the one with the mount point among its arguments."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as handle:
                words = handle.read().split(b"\0")
        except FileNotFoundError:
            continue
        if os.fsencode(target) in words and process != str(os.getpid()):
            return process
    raise RuntimeError(f"no process serves {target}")


def memory(process):
    """Resident and own memory in MiB."""
    found = {}
    with open(f"/proc/{process}/smaps_rollup") as handle:
        for line in handle:
            words = line.split()
            if words[-1] == "kB":
                found[words[0].rstrip(":")] = int(words[1]) / 1024
    return found["Rss"], found["Private_Dirty"]


def cell(found, target):
    resident, own = found
    return f"{'✓' if resident <= target else '**✗**'} {resident:.1f} ({own:.1f})"
