"""What the union takes for single operations, without FUSE: benches/union.rs."""

import os
import subprocess

from common import TOP, progress


def run(arena):
    progress("building and running the benchmark of the union")
    command = ["cargo", "bench", "--quiet", "--locked", "--bench", "union"]
    environment = os.environ | {"TMPDIR": arena.fresh("upper")}
    result = subprocess.run(command, cwd=TOP, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print("## Operations of the union\n")
    print("```\n" + result.stdout.strip() + "\n```\n", flush=True)
