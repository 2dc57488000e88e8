# Which times an operation moves, and what times can be set.
def fill():
    make_dir("dir")
    for name in ("dir/file", "dir/other", "dir/mapped", "dir/set", "dir/gone", "dir/exact"):
        write_file(name, b"content " * 1000, 0o666, 1000)
    make_dir("dir/sub")
    make_dir("dir/empty")
    make_dir("target")
    write_file("target/old", b"")
    os.symlink("file", "dir/link")


def times(path):
    found = os.lstat(path)
    return found.st_mtime_ns, found.st_ctime_ns


def moved(what, act, *paths):
    """Which of mtime (m) and ctime (c) of each path the act moves."""
    before = {path: times(path) for path in paths if os.path.lexists(path)}
    time.sleep(0.012)
    result = attempt(act)
    said = []
    for path in paths:
        if path not in before or not os.path.lexists(path):
            continue
        letters = ["mc"[i] for i in (0, 1) if times(path)[i] != before[path][i]]
        modified, changed = times(path)
        if letters == ["m", "c"] and abs(modified - changed) > 50_000_000:
            letters.append(" unequal")
        said.append(f"{path} {''.join(letters) or '-'}")
    print(f"{what}: {result}: {', '.join(said)}", flush=True)


def with_file(path, flags, act):
    file = os.open(path, flags)
    try:
        return act(file)
    finally:
        os.close(file)


def rules():
    file, other = "dir/file", "dir/other"
    nothing = lambda: None
    moved("nothing", nothing, "dir", file)
    moved("read", lambda: len(open(file, "rb").read()), "dir", file)
    moved("list", lambda: len(os.listdir("dir")), "dir")
    moved("readlink", lambda: os.readlink("dir/link"), "dir", "dir/link")
    writing = os.O_WRONLY
    moved("open to write", lambda: with_file(file, writing, lambda fd: None), "dir", file)
    moved("write", lambda: with_file(file, writing, lambda fd: os.write(fd, b"x")), "dir", file)
    moved("write nothing", lambda: with_file(file, writing, lambda fd: os.write(fd, b"")), file)
    moved("append", lambda: with_file(file, writing | os.O_APPEND, lambda fd: os.write(fd, b"x")), file)
    moved("truncate", lambda: os.truncate(file, 100), "dir", file)
    moved("truncate to the same", lambda: os.truncate(file, 100), file)
    moved("ftruncate to the same", lambda: with_file(file, writing, lambda fd: os.ftruncate(fd, 100)), file)
    moved("grow", lambda: os.truncate(file, 10000), file)
    moved("O_TRUNC", lambda: with_file(file, writing | os.O_TRUNC, lambda fd: None), file)
    moved("O_TRUNC of an empty file", lambda: with_file(file, writing | os.O_TRUNC, lambda fd: None), file)
    moved("O_CREAT of a file", lambda: with_file(file, writing | os.O_CREAT, lambda fd: None), "dir", file)
    moved("fallocate", lambda: with_file(file, writing, lambda fd: os.posix_fallocate(fd, 0, 20000)), file)
    size = ctypes.c_int64
    for name, mode in (("KEEP_SIZE", 1), ("PUNCH_HOLE", 3), ("ZERO_RANGE", 16)):
        allocate = lambda fd: call(libc.fallocate, fd, mode, size(0), size(30000))
        moved(name, lambda: with_file(file, writing, allocate), file)
    copy = lambda fd: with_file(other, os.O_RDONLY, lambda source: os.copy_file_range(source, fd, 50, 0, 0))
    moved("copy_file_range", lambda: with_file(file, writing, copy), file, other)
    moved("fsync", lambda: with_file(file, writing, os.fsync), file)
    moved("chmod", lambda: os.chmod(file, 0o600), "dir", file)
    moved("chmod to the same", lambda: os.chmod(file, 0o600), file)
    moved("chown", lambda: os.chown(file, 1001, 1001), "dir", file)
    moved("chown to the same", lambda: os.chown(file, 1001, 1001), file)
    moved("setxattr", lambda: os.setxattr(file, "user.x", b"x"), "dir", file)
    moved("getxattr", lambda: os.getxattr(file, "user.x"), file)
    moved("removexattr", lambda: os.removexattr(file, "user.x"), file)
    moved("setxattr of a directory", lambda: os.setxattr("dir/sub", "user.x", b"x"), "dir", "dir/sub")
    moved("utime", lambda: os.utime(file), "dir", file)
    moved("link", lambda: os.link(file, "dir/second"), "dir", file)
    moved("unlink one", lambda: os.unlink("dir/second"), "dir", file)
    moved("rename", lambda: os.rename(file, "dir/new"), "dir")
    moved("rename back", lambda: os.rename("dir/new", file), "dir", file)
    moved("rename over", lambda: os.rename(other, file), "dir")
    moved("rename to another directory", lambda: os.rename(file, "target/file"), "dir", "target")
    moved("rename back", lambda: os.rename("target/file", file), "dir", "target")
    moved("rename of a directory", lambda: os.rename("dir/sub", "target/sub"), "dir", "target")
    moved("rename back", lambda: os.rename("target/sub", "dir/sub"), "dir", "target", "dir/sub")
    moved("create", lambda: write_file("dir/created", b""), "dir", file)
    moved("mkdir", lambda: os.mkdir("dir/made"), "dir", "dir/sub")
    moved("mkdir in it", lambda: os.mkdir("dir/made/in"), "dir", "dir/made")
    moved("rmdir in it", lambda: os.rmdir("dir/made/in"), "dir", "dir/made")
    moved("rmdir", lambda: os.rmdir("dir/made"), "dir")
    moved("symlink", lambda: os.symlink("x", "dir/symlink"), "dir")
    moved("mkfifo", lambda: os.mkfifo("dir/fifo"), "dir")
    moved("write to a FIFO", lambda: with_file("dir/fifo", os.O_RDWR, lambda fd: os.write(fd, b"x")), "dir")
    moved("chmod of a FIFO", lambda: os.chmod("dir/fifo", 0o600), "dir", "dir/fifo")
    moved("unlink", lambda: os.unlink("dir/fifo"), "dir")
    moved("failed rmdir", lambda: os.rmdir("dir"), ".", "dir")
    moved("failed mkdir", lambda: os.mkdir("dir/sub"), "dir", "dir/sub")
    moved("failed rename", lambda: os.rename(file, "dir/sub"), "dir", file, "dir/sub")
    moved("failed unlink", lambda: os.unlink("dir/sub"), "dir", "dir/sub")
    as_user(1005, lambda: moved("chmod another's", lambda: os.chmod(file, 0o777), "dir", file))
    # A deleted file that is still open.
    opened = os.open("dir/gone", os.O_RDWR)
    before = os.fstat(opened)
    time.sleep(0.012)
    os.unlink("dir/gone")
    after = os.fstat(opened)
    print("deleted", after.st_mtime_ns == before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns)
    time.sleep(0.012)
    os.write(opened, b"x")
    print("written", os.fstat(opened).st_mtime_ns > after.st_mtime_ns)


def mapped():
    path = "dir/mapped"
    for sync in (mmap.mmap.flush, None):
        file = os.open(path, os.O_RDWR)
        memory = mmap.mmap(file, 8000)

        def poke():
            memory[100:105] = b"mmap!"
            if sync:
                memory.flush()
            else:
                memory.close()
                os.fsync(file)

        moved("write to memory", poke, path)
        os.close(file)


def set_times():
    path = "dir/set"
    values = (0, 1, -1, 10**9, 999_999_999, -10**9, -10**9 + 1, -(2**31) * 10**9, (2**31) * 10**9 + 7,
              (2**32) * 10**9 + 123_456_789, (2**33) * 10**9, -1_500_000_000, 1_700_000_000_000_000_001)
    for value in values:
        say(f"set {value}", lambda: os.utime(path, ns=(value + 5, value)))
        found = os.stat(path)
        print("  ", found.st_mtime_ns, found.st_atime_ns)
    # Further than a disk can note: the nearest it can.
    timespec = struct.Struct("qqqq")
    for seconds in (-(2**63), -(2**63) + 1, -(2**40), 2**40, 2**63 - 1):
        for nanoseconds in (0, 5, 999_999_999):
            both = timespec.pack(seconds, nanoseconds, seconds, nanoseconds)
            say(f"set {seconds}", lambda: call(libc.utimensat, -100, path.encode(), both, 0))
            print("  ", os.stat(path).st_mtime_ns)
    for value in (-5, 2**40):
        os.utime("dir/link", ns=(value, value), follow_symlinks=False)
        print("link", os.lstat("dir/link").st_mtime_ns, os.stat("dir/link").st_mtime_ns != value)
        os.utime("dir", ns=(value, value))
        print("directory", os.stat("dir").st_mtime_ns)

    def as_another():
        say("set", os.utime, path, (1, 1))
        say("now", os.utime, path)

    as_user(1001, as_another)
    os.chmod(path, 0o644)
    as_user(1001, as_another)
    as_user(1000, as_another)
    # Writing does not bring a set time back.
    os.utime(path, (1, 1))
    with open(path, "r+b") as file:
        file.write(b"x")
        file.flush()
        os.utime(path, ns=(3, 3))
    print("set after a write", os.stat(path).st_mtime_ns)
    # Copied up by another change: the time stays what it was.
    before = os.stat("dir/exact")
    os.chmod("dir/exact", 0o600)
    after = os.stat("dir/exact")
    print("exact", before.st_mtime_ns == after.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns)


def check():
    # All copy-ups come first: they are changes of the directories above, too.
    for name in ("dir/file", "dir/other", "dir/mapped", "dir/set", "dir/gone"):
        os.chmod(name, 0o666)
    os.utime("dir/link", follow_symlinks=False)
    for name in ("dir/sub", "dir/empty", "dir", "target", "."):
        os.chmod(name, 0o755)
    rules()
    mapped()
    set_times()
