"""400 layers of 100 files, walked cold: Lamina, overlayfs in the kernel and in FUSE, one native tree."""

import os
import tarfile

from common import drop_caches, have, lamina, measure, mounted, progress, rounds, table

LAYERS = 400


def run(arena):
    progress("making 400 layers")
    home = arena.fresh("layers")
    native = arena.fresh("native")
    archives = []
    for number in range(LAYERS):
        layer = os.path.join(home, str(number))
        for directory in range(10):
            for root in (layer, native):
                os.makedirs(os.path.join(root, f"d{directory}"), exist_ok=True)
            for file in range(10):
                name = f"d{directory}/layer{number}-file{file}"
                for root in (layer, native):
                    with open(os.path.join(root, name), "w") as handle:
                        handle.write(name)
        archive = os.path.join(home, f"{number}.tar")
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(layer, arcname=".")
        archives.append(archive)
    store = arena.fresh("store")
    progress("building the image")
    build = measure(lamina(store, "layer", "build", "-t", "many", *archives))

    target = arena.join("mnt")
    lowers = ":".join(str(number) for number in reversed(range(LAYERS)))
    mounts = {
        "lamina": (lamina(store, "mount", "--read-only", "many", target), {}),
        "kernel overlayfs": (["mount", "-t", "overlay", "overlay", "-o", "lowerdir=" + lowers, target], {"cwd": home}),
    }
    if have("fuse-overlayfs"):
        mounts["fuse-overlayfs"] = (["fuse-overlayfs", "-o", "lowerdir=" + lowers, target], {"cwd": home})
    with mounted(mounts["lamina"][0], target):
        pass  # the merged index exists from here on

    def cold(command, options):
        def contestant():
            with mounted(command, target, **options):
                drop_caches()
                return walk(target)

        return contestant

    def native_cold():
        drop_caches()
        return walk(native)

    contestants = {"native tree": native_cold}
    contestants |= {name: cold(command, options) for name, (command, options) in mounts.items()}
    print("## Many layers\n")
    table(f"{LAYERS} layers of 100 files, walked cold", rounds(contestants), "native tree")
    print(f"Building the image of {LAYERS} layers took {build.seconds:.2f} s.\n")


def walk(tree):
    """Lists and stats everything."""
    return measure(["find", tree, "-xdev", "-printf", "%s\\n"])
