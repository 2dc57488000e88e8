# Who may do what; set-id bits and file capabilities; what new objects inherit.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
MODES = (0o644, 0o4755, 0o2755, 0o6755, 0o2745, 0o6644, 0o4777, 0o6777, 0o2666)
CHANGES = ("write", "append", "truncate", "ftruncate", "open_trunc", "grow", "fallocate", "punch",
           "copy_range", "mmap", "chown_same", "chgrp", "write_nothing")


def fill():
    for change in CHANGES:
        for mode in MODES:
            for who in ("root", "owner", "other", "member"):
                name = f"{change}-{mode:o}-{who}"
                write_file(name, b"#!/bin/sh\n" * 10, mode | 0o666, 1000, 1000)
                os.setxattr(name, "security.capability", CAPABILITY)
    write_file("source", b"x" * 100, 0o644)
    make_dir("sgid", 0o2777, 1000, 2000)
    make_dir("sticky", 0o1777, 0, 0)
    for name in ("sticky/mine", "sticky/yours"):
        write_file(name, b"", 0o666, 1000 if "mine" in name else 1001)
    make_dir("sticky/dir", 0o777, 1001)
    make_dir("closed", 0o700, 1000)
    write_file("closed/file", b"secret", 0o666, 1000)
    make_dir("search", 0o711, 1000)
    write_file("search/file", b"known", 0o644, 1000)
    make_dir("listed", 0o744, 1000)
    write_file("listed/file", b"seen", 0o644, 1000)
    make_dir("plain", 0o777, 1000)
    for mode in range(8):
        write_file(f"mode{mode}", b"#!/bin/sh\nexit 0\n", mode << 6 | (7 - mode) << 3 | mode, 1000, 1000)


def change(kind, path):
    if kind == "truncate":
        return os.truncate(path, 5)
    if kind == "grow":
        return os.truncate(path, 5000)
    if kind == "chown_same":
        return os.chown(path, 1000, -1)
    if kind == "chgrp":
        return os.chown(path, -1, 1000)
    flags = os.O_RDWR
    if kind == "append":
        flags |= os.O_APPEND
    if kind == "open_trunc":
        flags |= os.O_TRUNC
    file = os.open(path, flags)
    try:
        if kind in ("write", "append"):
            return os.write(file, b"new")
        if kind == "write_nothing":
            return os.write(file, b"")
        if kind == "ftruncate":
            return os.ftruncate(file, 7)
        if kind == "fallocate":
            return os.posix_fallocate(file, 0, 9000)
        if kind == "punch":
            size = ctypes.c_int64
            return call(libc.fallocate, file, 3, size(0), size(10))
        if kind == "copy_range":
            source = os.open("source", os.O_RDONLY)
            return os.copy_file_range(source, file, 10, 0, 0)
        if kind == "mmap":
            with mmap.mmap(file, 0) as memory:
                memory[0:3] = b"new"
                memory.flush()
    finally:
        os.close(file)


def has_capability(path):
    return attempt(lambda: len(os.getxattr(path, "security.capability")))


def set_ids():
    users = {"root": (0, 0, ()), "owner": (1000, 1000, ()), "other": (1001, 1001, ()),
             "member": (1002, 1002, (1000,))}
    for who, (uid, gid, groups) in users.items():
        for kind in CHANGES:
            for mode in MODES:
                path = f"{kind}-{mode:o}-{who}"
                as_user(uid, lambda: say(path, change, kind, path), gid, groups)
                print(f"  {path} then", shown(path), has_capability(path))
    # Changing the owner takes them from a file, whoever does it, but not from a directory.
    for uid in (1000, 0):
        write_file("own", b"", 0o6777, 1000, 1000)
        os.setxattr("own", "security.capability", CAPABILITY)
        as_user(uid, lambda: say("chown", os.chown, "own", 1000, 1000))
        print("  then", shown("own"), has_capability("own"))
        make_dir("owndir", 0o6777, 1000, 1000)
        as_user(uid, lambda: say("chown of a directory", os.chown, "owndir", 1000, 1000))
        print("  then", shown("owndir"))
        os.rmdir("owndir")
    # Set-group-id cannot be given by one who is not in the group.
    write_file("foreign", b"", 0o755, 1000, 2000)
    as_user(1000, lambda: say("chmod g+s", os.chmod, "foreign", 0o2755))
    print("  then", shown("foreign"))
    as_user(1000, lambda: say("chmod g+s as member", os.chmod, "foreign", 0o2755), 1000, (2000,))
    print("  then", shown("foreign"))


def inheritance():
    def make_all():
        os.umask(0o027)
        os.close(os.open("sgid/file", os.O_CREAT | os.O_WRONLY, 0o2777))
        os.mkdir("sgid/dir", 0o777)
        os.mkfifo("sgid/fifo", 0o666)
        os.symlink("x", "sgid/link")
        os.close(os.open("plain/file", os.O_CREAT | os.O_WRONLY, 0o7777))
        os.mkdir("plain/dir", 0o7777)

    as_user(1001, make_all, 1001, (3000,))
    for name in ("sgid/file", "sgid/dir", "sgid/fifo", "sgid/link", "plain/file", "plain/dir"):
        print(name, shown(name))


def sticky():
    def attempts():
        say("unlink own", os.unlink, "sticky/mine")
        say("unlink another's", os.unlink, "sticky/yours")
        say("rename another's", os.rename, "sticky/yours", "sticky/new")
        say("rename onto another's", os.rename, "plain/file2", "sticky/yours")
        say("rmdir another's", os.rmdir, "sticky/dir")
        say("link another's", os.link, "sticky/yours", "plain/linked")

    write_file("plain/file2", b"", 0o666, 1000)
    as_user(1000, attempts)


def access():
    def attempts():
        for path in ("closed/file", "search/file", "listed/file"):
            say(f"stat {path}", lambda: os.stat(path).st_size)
            say(f"read {path}", lambda: open(path).read())
            say(f"write {path}", lambda: open(path, "w").close())
        for path in ("closed", "search", "listed"):
            say(f"list {path}", listed, path)
            say(f"create in {path}", lambda: open(path + "/new", "w").close())
            say(f"chdir {path}", lambda: (os.chdir(path), os.chdir(".."))[1])
        for mode in range(8):
            path = f"mode{mode}"
            answers = [os.access(path, bit) for bit in (os.R_OK, os.W_OK, os.X_OK)]
            print(path, answers, attempt(os.open, path, os.O_RDWR) if not answers[1] else "")
            say(f"run {path}", lambda: subprocess.run(["./" + path]).returncode)
        say("chmod another's", os.chmod, "mode7", 0o777)
        say("utime another's", os.utime, "mode7", (1, 1))
        say("utime now", os.utime, "mode6")
        say("chown", os.chown, "mode7", 1001, -1)
        say("mknod", os.mknod, "plain/node", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        say("setxattr trusted", os.setxattr, "plain", "trusted.x", b"")
        say("setxattr security", os.setxattr, "plain", "security.capability", CAPABILITY)

    for who, groups in ((1000, ()), (1001, (1000,)), (1002, ())):
        print("user", who)
        as_user(who, attempts, None, groups)


def check():
    set_ids()
    inheritance()
    sticky()
    access()
