"""Size and speed of the layer index: layers/benches/index.rs, on the tree of the Debian image."""

import os
import subprocess

from common import TOP, fixture, progress, sh

LAYERS = ["1-base.tar", "2-tools.tar"]


def run(arena):
    source = fixture()
    tree = arena.fresh("tree")
    progress("unpacking the Debian image")
    for name in LAYERS:
        sh(["tar", "--exclude=./dev/*", "-xpf", os.path.join(source, name)], cwd=tree)
    progress("building and running the benchmark of the index")
    command = ["cargo", "bench", "--quiet", "--locked", "-p", "lamina-layers", "--bench", "index", "--", tree]
    result = subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, text=True, check=True)
    print("## Index\n")
    print("```\n" + result.stdout.strip() + "\n```\n", flush=True)
