"""Keeping a store: how quickly objects are collected, checked and verified.

Layers of many small files and of few large ones, each content once. A collection removes half of them while the
other half stays; a check reads everything, warm, with one thread and with all.
"""

import io
import json
import os
import statistics
import subprocess
import tarfile
import time

from common import ROUNDS, drop_caches, lamina, measure, progress, sh

SMALL = int(os.environ.get("BENCH_OBJECTS", "100000"))
SMALL_SIZE = 2_000
LARGE, LARGE_SIZE = int(os.environ.get("BENCH_LARGE", "64")), 16 << 20


def archive(path, mark, count, size):
    """A tar of count files of this size, no two alike."""
    block = os.urandom(size)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(count):
            head = b"%s %d\n" % (mark.encode(), number)
            entry = tarfile.TarInfo(f"d{number % 200}/f{number}")
            entry.size = size
            tar.addfile(entry, io.BytesIO(head + block[len(head) :]))


def rates(name, seconds, objects, size):
    return f"| {name} | {seconds:.2f} | {objects / seconds:,.0f} | {size / seconds / 1e9:.2f} |"


def run(arena):
    progress(f"making layers of {SMALL:,} small files and {LARGE} large ones")
    stays, goes, large = (arena.join(f"{name}.tar") for name in ("stays", "goes", "large"))
    archive(stays, "stays", SMALL // 2, SMALL_SIZE)
    archive(goes, "goes", SMALL // 2, SMALL_SIZE)
    archive(large, "large", LARGE, LARGE_SIZE)
    store = arena.join("store")
    sh(lamina(store, "layer", "build", "-t", "stays", stays, large))
    print("## Keeping a store\n")
    print(f"{SMALL:,} objects of {SMALL_SIZE:,} bytes, {LARGE} of {LARGE_SIZE >> 20} MiB.\n")
    print("| | seconds | objects/s | GB/s |\n|---|---|---|---|")

    removed, checked = [], {}
    for number in range(ROUNDS):
        progress(f"round {number + 1}")
        sh(lamina(store, "layer", "build", goes))
        removed.append(collect(store, SMALL // 2))
        for name, options in (("gc, nothing to remove", ["gc"]), *CHECKS.items()):
            checked.setdefault(name, []).append(measure(lamina(store, *options)).seconds)
    small, big = SMALL // 2, LARGE * LARGE_SIZE
    print(rates("gc, half of the small ones", statistics.median(removed), small, small * SMALL_SIZE))
    for name, seconds in checked.items():
        size = small * SMALL_SIZE + big
        print(rates(name, statistics.median(seconds), small + LARGE, size), flush=True)
    drop_caches()
    cold = measure(lamina(store, "fsck")).seconds
    print(rates("fsck, cold", cold, small + LARGE, small * SMALL_SIZE + big))
    waits(store, goes)


CHECKS = {
    "fsck --quick": ["fsck", "--quick"],
    "fsck -j 1": ["fsck", "-j", "1"],
    "fsck": ["fsck"],
    "fsck --deep": ["fsck", "--deep"],
    "image verify": ["image", "verify", "stays"],
}


def collect(store, objects):
    """Seconds of a collection that removes so many objects."""
    start = time.perf_counter()
    swept = json.loads(sh(lamina(store, "gc", "--json")))
    seconds = time.perf_counter() - start
    if swept["objects"] != objects:
        raise RuntimeError(f"{swept['objects']} objects were removed, not {objects}")
    return seconds


def waits(store, goes):
    """How long others wait for a collection: the longest of many tags made meanwhile, and without one."""
    def longest(until):
        worst = 0
        while not until():
            start = time.perf_counter()
            sh(lamina(store, "image", "tag", "stays", "again"))
            worst = max(worst, time.perf_counter() - start)
        return worst

    sh(lamina(store, "layer", "build", goes))
    calls = iter(range(30))
    alone = longest(lambda: next(calls, None) is None)
    child = subprocess.Popen(lamina(store, "gc"), stdout=subprocess.DEVNULL)
    meanwhile = longest(lambda: child.poll() is not None)
    print(f"\nThe longest `image tag` during a collection took {meanwhile * 1000:.0f} ms, without one {alone * 1000:.0f} ms.\n")
