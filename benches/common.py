"""What the benchmarks share: the filesystem they run on, timing, tables."""

import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAMINA = os.path.abspath(os.environ.get("LAMINA", os.path.join(TOP, "target/release/lamina")))
BENCH_DIR = os.environ.get("BENCH_DIR")
ROUNDS = int(os.environ.get("ROUNDS", "3"))


def sh(command, **options):
    """Runs a command (a list) quietly; its output, all of it, comes with the error if it fails."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if result.returncode != 0:
        raise RuntimeError(f"{command}: exit status {result.returncode}\n{result.stdout}")
    return result.stdout


def progress(words):
    """A line for whoever watches."""
    print(f"  … {words}", file=sys.stderr, flush=True)


def machine():
    """One line on where the figures come from."""
    with open("/proc/meminfo") as handle:
        memory = int(handle.readline().split()[1]) // 1024 // 1024
    model = "unknown processor"
    with open("/proc/cpuinfo") as handle:
        for line in handle:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    place = "journaled ext4 in memory"
    if BENCH_DIR:
        place = sh(["stat", "-f", "-c", "%T on a disk", BENCH_DIR]).strip()
    commit = sh(["git", "-C", TOP, "describe", "--always", "--dirty"]).strip()
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit}; {os.cpu_count()} × {model}, {memory} GiB, "
        f"Linux {platform.release()}; {place}; medians of {ROUNDS} alternating rounds\n"
    )


MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}


class Arena:
    """A filesystem on an image in /dev/shm, mounted by loop, gone at the end with all mounts on it.

    With BENCH_DIR, a directory in that one instead, on whatever disk it is. `reserved`: an image of 6 GiB whose
    memory is there from the beginning, where its allocation would count more than what is measured.
    """

    def __init__(self, name, filesystem="ext4", reserved=False):
        self.name, self.filesystem, self.reserved = name, filesystem, reserved

    def __enter__(self):
        self.image = None
        if BENCH_DIR:
            self.path = tempfile.mkdtemp(prefix=f"lamina-bench-{self.name}.", dir=BENCH_DIR)
            return self
        descriptor, self.image = tempfile.mkstemp(prefix="lamina-bench.", dir="/dev/shm")
        size = (6 if self.reserved else int(os.environ.get("BENCH_GB", "12"))) << 30
        os.ftruncate(descriptor, size)
        self.path = tempfile.mkdtemp(prefix=f"lamina-bench-{self.name}.")
        sh([*MKFS[self.filesystem], self.image])
        if self.reserved:
            os.posix_fallocate(descriptor, 0, size)
        os.close(descriptor)
        sh(["mount", "-o", "loop,noatime", self.image, self.path])
        return self

    def __exit__(self, *_):
        with open("/proc/self/mounts") as handle:
            targets = [line.split()[1] for line in handle]
        for target in reversed([t for t in targets if t.startswith(self.path)]):
            if subprocess.run(["umount", target], stderr=subprocess.DEVNULL).returncode != 0:
                subprocess.run(["umount", "-l", target], check=False)
        if self.image is None:
            shutil.rmtree(self.path)
            return
        os.rmdir(self.path)
        os.unlink(self.image)

    def join(self, *parts):
        return os.path.join(self.path, *parts)

    def fresh(self, name):
        """An empty directory called name."""
        path = self.join(name)
        self.remove(name)
        os.makedirs(path)
        return path

    def remove(self, name):
        path = self.join(name)
        if os.path.lexists(path):
            sh(["rm", "-rf", path])
        os.sync()


def fixture(*options):
    """The directory of the Debian layers."""
    out = subprocess.run(
        [os.path.join(TOP, "scripts/fixture-image"), *options], stdout=subprocess.PIPE, text=True, check=True
    )
    return out.stdout.strip()


def lamina(store, *words):
    """The command line of lamina with a store."""
    return [LAMINA, "--store", store, *words]


class Run:
    """Seconds and peak memory (MiB) of one run."""

    def __init__(self, seconds, peak):
        self.seconds = seconds
        self.peak = peak


def measure(command, **options):
    """Runs a command to its end. The peak is that of its largest process."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdin=options.pop("stdin", subprocess.DEVNULL), stdout=said, stderr=said, **options)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{command}: exit status {child.returncode}\n{said.read().decode(errors='replace')}")
    return Run(seconds, usage.ru_maxrss / 1024)


def measure_output(command, **options):
    """Runs a command to its end: how long it took, and what it said."""
    start = time.perf_counter()
    said = sh(command, **options)
    return time.perf_counter() - start, said


def rounds(contestants):
    """Runs each contestant (name -> function returning a Run, or None to be left out) by turns."""
    results = {name: [] for name in contestants}
    for number in range(ROUNDS):
        for name, contestant in contestants.items():
            progress(f"round {number + 1}: {name}")
            run = contestant()
            if run is not None:
                results[name].append(run)
    return {name: runs for name, runs in results.items() if runs}


def table(title, results, yardstick, memory=False):
    """Prints medians and their ratios to the yardstick."""
    base = statistics.median(run.seconds for run in results[yardstick]) if yardstick in results else None
    print(f"### {title}\n")
    print(f"| | seconds | × {yardstick} |" + (" peak MiB |" if memory else ""))
    print("|---|---|---|" + ("---|" if memory else ""))
    for name, runs in results.items():
        seconds = statistics.median(run.seconds for run in runs)
        ratio = f"{seconds / base:.2f}" if base else ""
        peak = f" {max(run.peak for run in runs):.0f} |" if memory else ""
        print(f"| {name} | {seconds:.3f} | {ratio} |{peak}")
    print(flush=True)


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as handle:
        handle.write("3")


@contextlib.contextmanager
def mounted(command, target, **options):
    """Mounts with a command, unmounts at the end and waits for that to be complete."""
    os.makedirs(target, exist_ok=True)
    sh(command, **options)
    try:
        yield target
    finally:
        for _ in range(100):
            if subprocess.run(["umount", target], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.05)


def have(program):
    """Whether a peer is installed; says so when it is not."""
    found = shutil.which(program) is not None
    if not found:
        progress(f"{program} is not installed: left out")
    return found
