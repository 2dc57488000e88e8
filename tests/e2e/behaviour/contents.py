# Appending, direct I/O, large and sparse files, memory mappings beside reads and writes.
GIB = 1 << 30


def fill():
    for name in ("append", "direct", "mapped", "private", "shared", "both", "ranges"):
        write_file(name, bytes(range(256)) * 256, 0o666)
    with open("huge", "wb") as file:
        file.truncate(5 * GIB)
        os.pwrite(file.fileno(), b"start", 0)
        os.pwrite(file.fileno(), b"beyond", 4 * GIB + 123)


def append():
    """Many writers that append: no record is lost or torn."""

    def writer(number):
        file = os.open("append", os.O_WRONLY | os.O_APPEND)
        for turn in range(100):
            record = f"{number:3} {turn:4} ".encode() * 25 + b"\n"
            assert os.write(file, record) == len(record)

    os.truncate("append", 0)
    children = [child(lambda number=number: writer(number)) for number in range(8)]
    for pid in children:
        ended(pid)
    lines = open("append", "rb").read().splitlines()
    print("appended", len(lines), len(set(lines)), {len(line) for line in lines})
    # Each writer's own records come in order.
    for number in range(8):
        turns = [int(line[4:8]) for line in lines if int(line[:3]) == number]
        print("  in order", turns == list(range(100)))
    file = os.open("append", os.O_RDWR | os.O_APPEND)
    size = os.fstat(file).st_size
    say("pwrite appends", os.pwrite, file, b"at the end", 0)
    print("  ", os.fstat(file).st_size - size, os.lseek(file, 0, os.SEEK_CUR))


def direct():
    file = os.open("direct", os.O_RDWR | os.O_DIRECT)
    memory = mmap.mmap(-1, 16384)
    say("direct read", os.preadv, file, [memory], 4096)
    print("  ", bytes(memory[:8]), bytes(memory[12000:12008]))
    memory[:4096] = b"D" * 4096
    say("direct write", os.pwritev, file, [memoryview(memory)[:4096]], 8192)
    cached = os.open("direct", os.O_RDWR)
    print("  cached sees it", os.pread(cached, 4, 8192), os.pread(cached, 2, 8191))
    os.pwrite(cached, b"cached", 8192)
    say("direct sees it", os.preadv, file, [memoryview(memory)[:4096]], 8192)
    print("  ", bytes(memory[:8]))
    say("direct append", os.pwritev, file, [memoryview(memory)[:4096]], 65536)
    print("  ", os.fstat(file).st_size)
    say("read at the end", os.preadv, file, [memory], 65536)
    say("read beyond it", os.preadv, file, [memory], 1 << 20)


def mapped():
    file = os.open("mapped", os.O_RDWR)
    one = mmap.mmap(file, 65536)
    two = mmap.mmap(os.open("mapped", os.O_RDONLY), 65536, prot=mmap.PROT_READ)
    print("before", one[:4], two[:4])
    os.pwrite(file, b"write", 0)
    print("after a write", one[:5], two[:5])
    one[10:13] = b"map"
    print("after a store", two[10:13], os.pread(file, 3, 10), open("mapped", "rb").read()[10:13])
    ended(child(lambda: print("in another process", os.pread(os.open("mapped", os.O_RDONLY), 3, 10))))

    def other():
        with open("mapped", "r+b") as mine, mmap.mmap(mine.fileno(), 0) as memory:
            memory[20:25] = b"child"

    ended(child(other))
    print("of another process", one[20:25], os.pread(file, 5, 20))
    os.ftruncate(file, 8192)
    print("cut", one[:5], attempt(lambda: os.fstat(file).st_size))
    os.ftruncate(file, 65536)
    print("grown", one[8192:8196], os.pread(file, 4, 8192))
    # Beyond the end of the file in its last page: zeros, which never reach it.
    os.ftruncate(file, 5000)
    one[5000:5004] = b"tail"
    one.flush(4096, 4096)
    print("tail", os.fstat(file).st_size, os.pread(file, 10, 4998))
    os.ftruncate(file, 6000)
    print("tail is zero", os.pread(file, 4, 5000))

    def bus_error():
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        one[32768]

    pid = child(bus_error)
    print("beyond", os.waitpid(pid, 0)[1] & 0x7F == signal.SIGBUS)


def private():
    file = os.open("private", os.O_RDWR)
    copy = mmap.mmap(file, 65536, flags=mmap.MAP_PRIVATE)
    copy[0:4] = b"mine"
    print("private", copy[:4], os.pread(file, 4, 0))
    os.pwrite(file, b"theirs", 4096)
    print("private elsewhere", copy[4096:4102])
    # A mapping made before the copy-up, of a reader.
    reader = os.open("shared", os.O_RDONLY)
    memory = mmap.mmap(reader, 65536, prot=mmap.PROT_READ)
    print("shared", memory[:4])
    with open("shared", "r+b") as writer:
        writer.write(b"new!")
    print("over a copy-up", OVER_COPY_UP and (memory[:4], os.pread(reader, 4, 0)))
    readonly = os.open("shared", os.O_RDONLY)
    say("shared mapping of a reader to write", lambda: mmap.mmap(readonly, 4096) and None)
    for path in (".", "/dev/null/x"):
        say("mapping of no file", lambda: mmap.mmap(os.open(path, os.O_RDONLY), 4096, prot=mmap.PROT_READ) and None)


def segments(file):
    found, at = [], 0
    while True:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return found
        at = os.lseek(file, start, os.SEEK_HOLE)
        found.append((start, at))


def huge():
    file = os.open("huge", os.O_RDWR)
    print("huge", os.fstat(file).st_size, os.fstat(file).st_blocks < 100)
    print("  ", os.pread(file, 6, 4 * GIB + 123), os.pread(file, 4, 3 * GIB))
    say("write beyond 4 GiB", os.pwrite, file, b"more", 4 * GIB + 70_000)
    print("  ", segments(file), os.fstat(file).st_blocks < 200)
    say("write at 6 GiB", os.pwrite, file, b"last", 6 * GIB)
    print("  ", os.fstat(file).st_size, os.pread(file, 5, 0), os.pread(file, 6, 4 * GIB + 123))
    with mmap.mmap(file, 4096, offset=4 * GIB) as memory:
        memory[0:3] = b"map"
    print("  ", os.pread(file, 3, 4 * GIB))
    say("truncate to 1 TiB", os.ftruncate, file, 1 << 40)
    print("  ", os.fstat(file).st_size, os.lseek(file, 0, os.SEEK_END), segments(file)[-1])
    for size in ((1 << 44) - 4096, (1 << 44) - 4095, (1 << 63) - 1):
        result = attempt(os.ftruncate, file, size)
        print("truncate to", size, result)
    say("seek beyond", os.lseek, file, 1 << 60, os.SEEK_DATA)


def ranges():
    file = os.open("ranges", os.O_RDWR)
    size = ctypes.c_int64
    for name, mode, offset, length in (
        ("punch", 3, 4096, 8192), ("zero", 0x10, 20000, 5000),
        ("keep size", 1, 100_000, 100_000), ("zero, keep size", 0x11, 90_000, 9000), ("punch without keep", 2, 0, 4096),
        ("unshare", 0x40, 0, 4096), ("unknown", 0x1000, 0, 4096), ("nothing", 0, 0, 0),
        ("too far", 0, (1 << 62), 1 << 62)):
        say(name, lambda: call(libc.fallocate, file, mode, size(offset), size(length)))
        content = os.pread(file, 300_000, 0)
        print("  ", len(content), content.count(0), content[4095:4098], content[12287:12290], segments(file))


    other = os.open("both", os.O_RDWR)
    for name, mode in (("collapse", 8), ("insert", 0x20)):
        say(name, lambda: call(libc.fallocate, other, mode, size(4096), size(4096)))


OVER_COPY_UP = os.environ.get("LAMINA_IO") != "passthrough"


def check():
    append()
    direct()
    mapped()
    private()
    huge()
    ranges()
