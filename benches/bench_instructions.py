#!/usr/bin/env python3
"""Instructions, allocations and system calls of single operations, counted by callgrind: benches/instructions.rs.

    benches/bench_instructions.py           prints them as a table
    benches/bench_instructions.py build     builds the program that is counted, and no more
    benches/bench_instructions.py check     compares them with instructions.json
    benches/bench_instructions.py update    writes them into instructions.json

What is counted does not depend on how busy the machine is. Instructions depend on the compiler and the C library: with
others than those of instructions.json they are shown and not judged; nor is an ordinary user's upper, whose marks are
others. Images are judged always: looking at a file of one may neither allocate nor make a system call.
"""

import glob
import json
import os
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target"))
TABLE = os.path.join(TOP, "benches/instructions.json")
# As three patterns: callgrind forgets what it was told of one when it is given again.
FUNCTION = ("*counted_by_callgrind*", "instructions::counted_by_callgrind*", "*::counted_by_callgrind*")
# A request reads the clock before and after, which is a system call only where valgrind runs.
CLOCK = 2
# How many instructions more, or fewer, are let pass.
TOLERANCE = 0.05
# How our own crates are built. One unit of code, so that a change in one place moves no border between units, and
# what is inlined, in another.
PROFILE = {
    "OPT_LEVEL": "3",
    "CODEGEN_UNITS": "1",
    "DEBUG_ASSERTIONS": "false",
    "OVERFLOW_CHECKS": "false",
    "INCREMENTAL": "false",
}
COLUMNS = ("instructions", "allocations", "system calls")
# These may need nothing but instructions.
FREE = (
    "index: lookup",
    "lookup: image directory, there",
    "lookup: image directory, absent",
    "getattr: image file",
    "read: in the index, 200 bytes",
    "request: LOOKUP, image file",
    "request: LOOKUP, absent",
    "request: GETATTR, image file",
)


def circumstances():
    """What the number of instructions depends on besides our code."""
    version = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    with open("/proc/cpuinfo") as handle:
        # Valgrind shows programs one of two processors.
        avx2 = "with" if " avx2 " in handle.read() else "without"
    return f"{version}, {os.confstr('CS_GNU_LIBC_VERSION')}, {os.uname().machine} {avx2} AVX2"


def build():
    """Code as good as a release's, on what tests are built on, which the tests' build has made."""
    command = ["cargo", "build", "--quiet", "--locked", "--example", "instructions"]
    profile = {f"CARGO_PROFILE_DEV_{name}": value for name, value in PROFILE.items()}
    subprocess.run(command, cwd=TOP, env=os.environ | profile, check=True)


def measure():
    """Each case with its counts for one operation."""
    build()
    # The same filesystem everywhere: what it cannot do costs system calls.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lamina-instructions.", dir=memory) as place:
        out = os.path.join(place, "callgrind")
        callgrind = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
        options = ("toggle-collect", "dump-after", "zero-before")
        callgrind += [f"--{option}={pattern}" for option, pattern in zip(options, FUNCTION)]
        callgrind += ["--collect-systime=yes"]
        program = os.path.join(TARGET, "debug/examples/instructions")
        environment = os.environ | {"TMPDIR": place}
        said = subprocess.run([*callgrind, program], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        cases = [line.split("\t") for line in said.stdout.splitlines()]
        dumps = [f"{out}.{number}" for number in range(1, len(cases) + 1)]
        if not cases or len(glob.glob(out + ".*")) < len(cases):
            sys.exit("callgrind did not count every case; does valgrind know the symbols of this compiler?")
        counts = {}
        # The first has what came before it.
        for (name, times, allocations), dump in list(zip(cases, dumps))[1:]:
            instructions, system_calls = read(dump)
            if name.startswith("request:"):
                system_calls -= CLOCK * int(times)
            counts[name] = [count / int(times) for count in (instructions, int(allocations), system_calls)]
        return counts


def read(dump):
    """Instructions and system calls of one dump. https://valgrind.org/docs/manual/cl-format.html"""
    fields = {}
    with open(dump) as handle:
        for line in handle:
            key, colon, value = line.partition(": ")
            if colon and key in ("events", "summary"):
                fields[key] = value.split()
    counted = dict(zip(fields["events"], map(int, fields["summary"])))
    return counted["Ir"], counted.get("sysCount", 0)


def show(counts):
    print(f"Counted for one operation; {circumstances()}.\n")
    print(f"| | {' | '.join(COLUMNS)} |\n|---|---|---|---|")
    for name, values in counts.items():
        print(f"| {name} | {' | '.join(cell(value) for value in values)} |")


def cell(value):
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def more_than(found, known):
    """Which counts are larger than those of the table, as words."""
    # Tables that grow now and then make fractions.
    limits = (known[0] * (1 + TOLERANCE), known[1] * 1.01 + 0.1, known[2] + 0.01)
    larger = [at for at, limit in enumerate(limits) if found[at] > limit]
    return [f"{cell(found[at])} {COLUMNS[at]}, in the table {cell(known[at])}" for at in larger]


def check(counts):
    """Whether nothing became worse. Says what did, and what else there is to say."""
    with open(TABLE) as handle:
        table = json.load(handle)
    known, here = table["counts"], circumstances()
    worse = [f"{name}: allocates or makes system calls" for name in FREE if any(counts[name][1:])]
    is_judged = here == table["circumstances"] and os.geteuid() == 0
    if not is_judged:
        print(f"instructions: not judged: the table is root's with {table['circumstances']}; here it is {here}")
    for name, found in counts.items():
        if name not in known:
            worse.append(f"{name}: not in the table")
            continue
        larger = [f"{name}: {words}" for words in more_than(found, known[name])]
        if is_judged:
            worse += larger
        else:
            print("\n".join(larger), end="\n" if larger else "")
        if more_than(known[name], found) and is_judged:
            print(f"{name}: better than the table, {cell(found[0])} instructions in place of {cell(known[name][0])}")
    worse += [f"{name}: in the table, and not measured" for name in known if name not in counts]
    for words in worse:
        print(f"instructions: {words}", file=sys.stderr)
    if worse:
        print("instructions: if that is meant: benches/bench_instructions.py update", file=sys.stderr)
    return not worse


def update(counts):
    rounded = {name: [round(values[0]), *(round(value, 2) for value in values[1:])] for name, values in counts.items()}
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in rounded.items())
    with open(TABLE, "w") as handle:
        handle.write(f'{{\n  "circumstances": {json.dumps(circumstances())},\n  "counts": {{\n{lines}\n  }}\n}}\n')


def run(_arena):
    print("## Instructions\n")
    show(measure())
    print(flush=True)


def main():
    wanted = sys.argv[1:]
    if wanted not in ([], ["build"], ["check"], ["update"]):
        sys.exit("usage: benches/bench_instructions.py [build|check|update]")
    if wanted == ["build"]:
        return build()
    counts = measure()
    if wanted == ["update"]:
        update(counts)
    show(counts)
    if wanted == ["check"] and not check(counts):
        sys.exit(1)


if __name__ == "__main__":
    main()
