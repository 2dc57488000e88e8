# What inotify and fanotify tell of changes.
NAMES = {1: "ACCESS", 2: "MODIFY", 4: "ATTRIB", 8: "CLOSE_WRITE", 0x10: "CLOSE_NOWRITE", 0x20: "OPEN", 0x40: "MOVED_FROM",
         0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF",
         0x2000: "UNMOUNT", 0x4000: "Q_OVERFLOW", 0x8000: "IGNORED", 0x40000000: "ISDIR"}


def fill():
    make_dir("dir")
    for name in ("a", "b", "c", "d", "e", "gone"):
        write_file("dir/" + name, b"content")
    make_dir("dir/sub")
    write_file("dir/sub/in", b"")
    make_dir("target")
    os.symlink("a", "dir/link")


def names(mask):
    return "|".join(name for bit, name in NAMES.items() if mask & bit)


class Watch:
    def __init__(self, paths):
        self.file = libc.inotify_init1(os.O_NONBLOCK)
        self.paths = {}
        for path in paths:
            self.paths[call(libc.inotify_add_watch, self.file, path.encode(), 0xFFF)] = path

    def events(self):
        said, cookies = [], {}
        while True:
            try:
                data = os.read(self.file, 65536)
            except BlockingIOError:
                return said
            while data:
                watch, mask, cookie, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                data = data[16 + length :]
                number = cookies.setdefault(cookie, len(cookies) + 1) if cookie else ""
                said.append(f"{self.paths[watch]} {names(mask)} {name} {number}".rstrip())


def rewrite(path, flags=0):
    file = os.open(path, os.O_WRONLY | flags)
    os.write(file, b"new")
    os.close(file)


def with_mapping(path):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:1] = b"M"


ACTS = (
    ("read", lambda: open("dir/a", "rb").read()),
    ("write", lambda: rewrite("dir/a")),
    ("append", lambda: rewrite("dir/a", os.O_APPEND)),
    ("O_TRUNC", lambda: rewrite("dir/b", os.O_TRUNC)),
    ("truncate", lambda: os.truncate("dir/c", 1)),
    ("mapping", lambda: with_mapping("dir/a")),
    ("chmod", lambda: os.chmod("dir/d", 0o600)),
    ("chown", lambda: os.chown("dir/d", 1, 1)),
    ("utime", lambda: os.utime("dir/d")),
    ("setxattr", lambda: os.setxattr("dir/d", "user.x", b"")),
    ("removexattr", lambda: os.removexattr("dir/d", "user.x")),
    ("link", lambda: os.link("dir/d", "dir/linked")),
    ("unlink of one", lambda: os.unlink("dir/linked")),
    ("create", lambda: os.close(os.open("dir/new", os.O_CREAT | os.O_WRONLY))),
    ("mknod", lambda: os.mkfifo("dir/fifo")),
    ("symlink", lambda: os.symlink("x", "dir/symlink")),
    ("mkdir", lambda: os.mkdir("dir/made")),
    ("rename", lambda: os.rename("dir/new", "dir/newer")),
    ("rename over", lambda: os.rename("dir/newer", "dir/e")),
    ("rename away", lambda: os.rename("dir/e", "target/e")),
    ("rename of a directory", lambda: os.rename("dir/sub", "target/sub")),
    ("exchange", lambda: call(libc.renameat2, -100, b"dir/a", -100, b"dir/b", 2)),
    ("list", lambda: os.listdir("dir")),
    ("rmdir", lambda: os.rmdir("dir/made")),
    ("unlink", lambda: os.unlink("dir/gone")),
    ("unlink of a FIFO", lambda: os.unlink("dir/fifo")),
    ("fallocate", lambda: allocate("dir/a")),
    ("copy_file_range", lambda: copy("dir/a", "dir/b")),
    ("rename of the watched directory", lambda: os.rename("dir", "moved")),
)


def allocate(path):
    file = os.open(path, os.O_WRONLY)
    os.posix_fallocate(file, 0, 5000)
    os.close(file)


def copy(source, target):
    source, target = os.open(source, os.O_RDONLY), os.open(target, os.O_WRONLY)
    os.copy_file_range(source, target, 3)
    os.close(source)
    os.close(target)


def inotify():
    watch = Watch(("dir", "dir/a", "dir/c", "dir/d", "dir/gone", "dir/sub", "target"))
    for name, act in ACTS:
        print(name, attempt(lambda: (act(), None)[1]), flush=True)
        # Of the kernel's own making, and at its own time: closing.
        for event in watch.events():
            print("  ", event, flush=True)


def fanotify():
    # FAN_CLASS_NOTIF | FAN_NONBLOCK: events of a directory's files, each with an open file.
    group = libc.fanotify_init(0x2, os.O_RDONLY)
    mask = ctypes.c_uint64(0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x08000000)
    call(libc.fanotify_mark, group, 0x1, mask, -100, b"target")
    call(libc.fanotify_mark, group, 0x1 | 0x10, ctypes.c_uint64(0x2 | 0x8), -100, b"target")
    for name, act in (("read", lambda: open("target/e").read()), ("write", lambda: rewrite("target/e"))):
        act()
        while True:
            try:
                data = os.read(group, 24)
            except BlockingIOError:
                break
            length, _, _, _, mask, file, pid = struct.unpack("IBBHQii", data)
            path = os.readlink(f"/proc/self/fd/{file}")
            where = "/".join(path.split("/")[-2:])
            if "target" in where:
                print("fanotify", name, names(mask), where, pid == os.getpid())
            os.close(file)


def fanotify_names():
    # FAN_REPORT_DFID_NAME: events of names, which need file handles.
    group = libc.fanotify_init(0x2 | 0xC00, os.O_RDONLY)
    mask = ctypes.c_uint64(0x100 | 0x200 | 0x40 | 0x80 | 0x40000000)
    say("fanotify of names", call, libc.fanotify_mark, group, 0x1, mask, -100, b"target")
    with_names = []
    write_file("target/made", b"")
    os.rename("target/made", "target/renamed")
    os.unlink("target/renamed")
    try:
        data = os.read(group, 65536)
    except BlockingIOError:
        return print("no events")
    while data:
        length, _, _, _, mask, _, _ = struct.unpack_from("IBBHQii", data)
        # A header, the filesystem's id, a handle of the directory, the name.
        handle = struct.unpack_from("I", data, 24 + 4 + 8)[0]
        name = data[24 + 4 + 8 + 8 + handle : length].rstrip(b"\0")
        with_names.append(f"{names(mask)} {name}")
        data = data[length:]
    print(with_names)


def check():
    inotify()
    fanotify()
    fanotify_names()
