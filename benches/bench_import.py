"""Import: compressed layers into a store, against what else unpacks the same bytes."""

import io
import os
import shutil
import subprocess
import sys
import tarfile

from common import fixture, have, lamina, measure, rounds, sh, table
from layout import Layout

LAYERS = ["1-base.tar", "2-tools.tar", "3-pruned.tar"]


def run(arena):
    source = fixture("--packed")
    inputs = arena.fresh("inputs")
    for name in LAYERS:
        for packing in ("", ".gz", ".zst"):
            shutil.copy(os.path.join(source, name + packing), inputs)
    shutil.copy(os.path.join(source, "1-base.tar.xz"), inputs)
    gzipped = [os.path.join(inputs, name + ".gz") for name in LAYERS]
    print("## Import\n")
    against_peers(arena, inputs, gzipped)
    by_compression(arena, inputs)
    again_and_similar(arena, inputs)
    three_gigabytes(arena)


def again(arena):
    """Only what is imported again: the disk counts there, see BENCH_DIR."""
    source = fixture("--packed")
    inputs = arena.fresh("inputs")
    for name in LAYERS:
        for packing in ("", ".zst"):
            shutil.copy(os.path.join(source, name + packing), inputs)
    print("## Import again\n")
    again_and_similar(arena, inputs)


def build_fresh(arena, layers, **options):
    """Builds layers into an empty store."""

    def contestant():
        store = arena.fresh("store")
        return measure(lamina(store, "layer", "build", "-t", "image", *layers), **options)

    return contestant


def tar_fresh(arena, layers):
    """What `tar -x` takes for the same; a directory that becomes a file is beyond it."""
    options = '--xattrs --xattrs-include="*" --exclude=./srv/odd'
    loop = f'for layer in "$@"; do tar {options} -xpf "$layer" || exit 1; done'

    def contestant():
        return measure(["sh", "-c", loop, "tar", *layers], cwd=arena.fresh("tree"))

    return contestant


def against_peers(arena, inputs, gzipped):
    layout = arena.fresh("oci")
    Layout(layout).add("latest", [os.path.join(inputs, name) for name in LAYERS])
    archive = arena.join("oci.tar")
    sh(["tar", "-cf", archive, "-C", layout, "."])
    contestants = {"tar -x": tar_fresh(arena, gzipped), "lamina layer build": build_fresh(arena, gzipped)}
    if have("umoci"):
        contestants["umoci unpack"] = lambda: measure(
            ["umoci", "unpack", "--image", layout + ":latest", os.path.join(arena.fresh("bundle"), "it")]
        )
    if have("podman"):

        def podman():
            root = arena.fresh("podman")
            command = ["podman", "--root", root, "--runroot", arena.fresh("podman-run"), "--storage-driver", "overlay"]
            return measure([*command, "load", "-q", "-i", archive])

        contestants["podman load"] = podman
    title = "The Debian image, three gzip layers, into an empty store"
    table(title, rounds(contestants), "tar -x", memory=True)
    for name in ("tree", "bundle", "podman", "podman-run", "oci", "oci.tar"):
        arena.remove(name)


def by_compression(arena, inputs):
    for packing in ("", ".zst", ".gz", ".xz"):
        layer = [os.path.join(inputs, "1-base.tar" + packing)]
        contestants = {"tar -x": tar_fresh(arena, layer), "lamina layer build": build_fresh(arena, layer)}
        table(f"The base layer alone, 1-base.tar{packing}", rounds(contestants), "tar -x", memory=True)
    arena.remove("tree")


def again_and_similar(arena, inputs):
    packed = [os.path.join(inputs, name + ".zst") for name in LAYERS]
    altered = [arena.join("altered-" + name + ".zst") for name in LAYERS[:2]]
    for name, target in zip(LAYERS, altered):
        alter(os.path.join(inputs, name), target)
    full = arena.fresh("full")
    first = build_fresh(arena, packed)

    def again():
        sh(["rm", "-rf", full])
        sh(lamina(full, "layer", "build", "-t", "image", *packed))
        os.sync()
        return measure(lamina(full, "layer", "build", "-t", "image", *packed))

    def similar():
        sh(["rm", "-rf", full])
        sh(lamina(full, "layer", "build", "-t", "image", *packed))
        os.sync()
        return measure(lamina(full, "layer", "build", "-t", "similar", *altered))

    contestants = {
        "empty store": first,
        "the same layers again": again,
        "an image that shares 90 % of its files": similar,
        "that image into an empty store": build_fresh(arena, altered),
    }
    table("Import again, three zstd layers", rounds(contestants), "empty store")
    arena.remove("full")


def alter(source, target, packer="zstd -q -3", remainder=0):
    """The same layer with every tenth file a byte longer, packed."""
    with open(target, "wb") as out, subprocess.Popen(packer.split(), stdin=subprocess.PIPE, stdout=out) as packer:
        with tarfile.open(source) as old, tarfile.open(fileobj=packer.stdin, mode="w|", format=tarfile.PAX_FORMAT) as new:
            files = 0
            for member in old:
                if member.isreg() and member.size and not member.issparse():
                    files += 1
                    content = old.extractfile(member)
                    if files % 10 == remainder:
                        data = content.read() + b"\n"
                        member.size = len(data)
                        member.pax_headers.pop("size", None)
                        new.addfile(member, io.BytesIO(data))
                    else:
                        new.addfile(member, content)
                elif not member.issparse():
                    new.addfile(member)
        packer.stdin.close()


def three_gigabytes(arena):
    """A layer far larger than the memory it may take, through a pipe."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "large_layer.py")

    def contestant():
        store = arena.fresh("store")
        with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as source:
            return measure(lamina(store, "layer", "build", "-t", "large", "-"), stdin=source.stdout)

    def untar():
        with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as source:
            return measure(["tar", "-xf", "-"], stdin=source.stdout, cwd=arena.fresh("store"))

    results = rounds({"tar -x": untar, "lamina layer build": contestant})
    table("A layer of 3 GB, from a pipe", results, "tar -x", memory=True)
    arena.remove("store")
