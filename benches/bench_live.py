"""How soon a mount is live: from starting the command to the first answer from the filesystem."""

import io
import os
import tarfile
import time

from common import Run, drop_caches, lamina, mounted, rounds, sh, table

ENTRIES = 100_000


def run(arena):
    archive = arena.join("wide.tar")
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(ENTRIES):
            entry = tarfile.TarInfo(f"d{number // 1000}/file{number}")
            entry.size = 4
            entry.mtime = 1_700_000_000
            tar.addfile(entry, io.BytesIO(b"%04d" % (number % 10_000)))
    store, small = arena.fresh("store"), arena.fresh("small")
    sh(lamina(store, "layer", "build", "-t", "image", archive))
    with tarfile.open(arena.join("small.tar"), "w") as tar:
        tar.addfile(tarfile.TarInfo("d0/file0"))
    sh(lamina(small, "layer", "build", "-t", "image", arena.join("small.tar")))
    target = arena.join("mnt")

    def live(store, mode, cold):
        command = lamina(store, "mount", *mode, "image", target)

        def contestant():
            if cold:
                drop_caches()
            os.makedirs(target, exist_ok=True)
            start = time.perf_counter()
            with mounted(command, target):
                os.stat(os.path.join(target, "d0/file0"))
                seconds = time.perf_counter() - start
            return Run(seconds, 0)

        return contestant

    with mounted(lamina(store, "mount", "--read-only", "image", target), target):
        pass
    contestants = {
        "one entry, read-only": live(small, ["--read-only"], False),
        f"{ENTRIES:,} entries, read-only": live(store, ["--read-only"], False),
        f"{ENTRIES:,} entries, writable": live(store, ["--name", "bench"], False),
        f"{ENTRIES:,} entries, read-only, caches dropped": live(store, ["--read-only"], True),
    }
    print("## Time to a live mount\n")
    table("From `lamina mount` to the first answer", rounds(contestants), "one entry, read-only")
