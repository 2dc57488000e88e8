"""100 changed files on an image of 100,000, committed as a new image: Lamina, buildah and podman.

Each commits a container (a mount) that is in use, and the base image is warm in all. Only the commit is timed.
"""

import io
import os
import tarfile

from common import have, lamina, measure, mounted, progress, rounds, sh, table

FILES = 100_000
CHANGES = 100


def run(arena):
    archive = make_archive(arena)
    contestants = {}
    cleanup = []
    store = arena.fresh("store")
    progress("importing the image")
    sh(lamina(store, "layer", "build", "-t", "base", archive))
    target = arena.join("mnt")
    with mounted(lamina(store, "mount", "--name", "work", "base", target), target):
        contestants["lamina"] = committed(target, lamina(store, "commit", "work", "-t", "made"))
        for tool in ("buildah", "podman"):
            if have(tool):
                progress(f"importing the image into {tool}")
                contestants[tool], end = prepare(arena, tool, archive)
                cleanup.append(end)
        results = rounds(contestants)
        for end in cleanup:
            end()
    print("## Commit\n")
    table(f"{CHANGES} changed files on {FILES:,}, committed while mounted", results, "lamina", memory=True)


def make_archive(arena):
    path = os.path.join(arena.fresh("archive"), "base.tar")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for directory in range(FILES // 100):
            entry = tarfile.TarInfo(f"d{directory}")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
            for file in range(100):
                text = f"{directory} {file}\n".encode() * 50
                entry = tarfile.TarInfo(f"d{directory}/f{file}")
                entry.size, entry.mode = len(text), 0o644
                tar.addfile(entry, io.BytesIO(text))
    return path


def committed(root, command, **options):
    """Changes 100 files, others in each round, and times the commit."""
    number = 0

    def contestant():
        nonlocal number
        number += 1
        for change in range(CHANGES):
            with open(os.path.join(root, f"d{change * 7}", "f1"), "w") as handle:
                handle.write(f"round {number}, change {change}\n" * 100)
        return measure(command, **options)

    return contestant


def prepare(arena, tool, archive):
    """A container of the image with its root mounted; how to commit it, and how to be rid of it."""
    storage = ["--storage-driver", "overlay", "--root", arena.fresh(f"{tool}-root"), "--runroot", arena.fresh(f"{tool}-run")]
    buildah = ["buildah", *storage]
    scratch = sh([*buildah, "from", "scratch"]).strip()
    sh([*buildah, "add", "--quiet", scratch, archive, "/"])
    sh([*buildah, "commit", "--quiet", "--rm", scratch, "base"])
    command = [tool, *storage]
    if tool == "buildah":
        container = sh([*command, "from", "--pull-never", "localhost/base"]).strip()
    else:
        container = sh([*command, "create", "--pull=never", "--network=none", "localhost/base", "true"]).strip()
    root = sh([*command, "mount", container]).strip()

    def end():
        sh([*command, "umount", container])
        sh([*command, "rm", container])

    return committed(root, [*command, "commit", "--quiet", container, "made"]), end
