# Extended attributes: namespaces, sizes, flags, kinds of object.
NAMES = ("user.a", "trusted.a", "security.a", "system.a", "other.a", "user.", "user", "",
         "user." + "n" * 250, "user." + "n" * 251, "trusted.overlay.opaque", "trusted.overlay.redirect",
         "trusted.overlay.overlay.x", "user.overlay.opaque", "user.lamina.node", "trusted.lamina.node",
         "trusted.overlay.", "user.overlay.whiteout")
OBJECTS = ("file", "dir", "link", "fifo", "char", "socket", "readonly")


def fill():
    write_file("file", b"x", 0o644, 1000)
    write_file("readonly", b"x", 0o444, 1000)
    make_dir("dir", 0o755, 1000)
    os.symlink("file", "link")
    os.mkfifo("fifo")
    os.chown("fifo", 1000, 1000)
    os.mknod("char", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("socket", stat.S_IFSOCK | 0o666)
    make_dir("sticky", 0o1777)
    write_file("kept", b"", 0o644, 1000)
    for name in ("user.one", "user.two", "trusted.three", "security.four"):
        os.setxattr("kept", name, name.encode())
    write_file("many", b"")
    for number in range(40):
        os.setxattr("many", f"user.number{number}", b"%d" % number)


def value_of(path, name):
    value = os.getxattr(path, name, follow_symlinks=False)
    return value if len(value) < 40 else f"{len(value)} bytes, {hash(value) == hash(bytes(len(value)))}"


def names_of(path):
    # A security module may add its own.
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return [name for name in names if name not in ("security.selinux", "security.SMACK64")]


def each(path):
    for name in NAMES:
        label = f"{path} {name[:30]!r} {len(name)}"
        say(f"get {label}", value_of, path, name)
        say(f"remove {label}", lambda: os.removexattr(path, name, follow_symlinks=False))
        set_it = lambda value, flags=0: os.setxattr(path, name, value, flags, follow_symlinks=False)
        say(f"replace {label}", set_it, b"r", os.XATTR_REPLACE)
        say(f"create {label}", set_it, b"c", os.XATTR_CREATE)
        say(f"create again {label}", set_it, b"d", os.XATTR_CREATE)
        say(f"get {label}", value_of, path, name)
        say(f"replace {label}", set_it, b"longer", os.XATTR_REPLACE)
        say(f"both {label}", set_it, b"x", os.XATTR_REPLACE | os.XATTR_CREATE)
        say(f"unknown flag {label}", set_it, b"x", 8)
        say(f"empty {label}", set_it, b"")
        say(f"get {label}", value_of, path, name)
    say(f"list {path}", names_of, path)
    for name in NAMES[::2]:
        say(f"remove {path} {name[:30]!r}", lambda: os.removexattr(path, name, follow_symlinks=False))
    say(f"list {path}", names_of, path)


def sizes(path):
    room = ctypes.create_string_buffer(70000)
    get = lambda name, size: call(libc.getxattr, path.encode(), name.encode(), room, ctypes.c_size_t(size))
    listed = lambda size: call(libc.listxattr, path.encode(), room, ctypes.c_size_t(size))
    # ext4 has room for some 4 KiB in all, of which an upper needs a little.
    for length in (0, 1, 100, 255, 1000, 2000):
        say(f"set {length}", os.setxattr, path, "user.size", b"v" * length)
        for size in (0, 1, length - 1, length, length + 1, 65536, 70000):
            if size >= 0:
                say(f"get {length} into {size}", get, "user.size", size)
    for length in (65536, 65537, 100000):
        say(f"set {length}", os.setxattr, path, "user.size", b"v" * length)
    names = listed(0)
    for size in (1, names - 1, names, names + 1, 65536):
        say(f"list into {size - names}", listed, size)


def check():
    for path in OBJECTS:
        each(path)
    for path in OBJECTS:
        as_user(1000, lambda: each(path))
        as_user(1001, lambda: each(path))
    sizes("file")
    sizes("many")
    # What the file had below goes up with it, and can be removed there.
    say("kept", names_of, "kept")
    os.truncate("kept", 4)
    say("kept", names_of, "kept")
    for name in names_of("kept"):
        say(f"kept {name}", value_of, "kept", name)
    os.removexattr("kept", "user.one")
    say("kept", names_of, "kept")
    say("removed", value_of, "kept", "user.one")
    as_user(1001, lambda: say("kept as another", names_of, "kept"))
    os.setxattr("many", "user.number3", b"changed")
    os.removexattr("many", "user.number4")
    say("many", lambda: [(name, os.getxattr("many", name)) for name in names_of("many")])
    os.rename("many", "dir/many")
    say("moved", lambda: len(names_of("dir/many")))
    as_user(1001, lambda: say("sticky directory of another", os.setxattr, "sticky", "user.x", b""))
    say("nothing there", os.listxattr, "missing")
    file = os.open("kept", os.O_RDONLY)
    os.unlink("kept")
    say("of a deleted file", os.setxattr, file, "user.late", b"late")
    say("of a deleted file", os.getxattr, file, "user.late")
