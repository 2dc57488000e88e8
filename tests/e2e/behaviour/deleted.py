# Files and directories that are used after their last name is gone.
def fill():
    for name in ("file", "mapped", "renamed", "over", "twice", "again"):
        write_file(name, b"lower content " * 1000, 0o644, 1000)
    os.link("twice", "second")
    make_dir("dir")
    write_file("dir/in", b"x")
    make_dir("empty")
    os.symlink("target", "link")
    os.mkfifo("fifo")


def use(file):
    """Everything that can be done with an open file."""
    number = os.fstat(file).st_ino
    print("  ", [(s.st_nlink, s.st_size) for s in [os.fstat(file)]])
    say("  read", os.pread, file, 5, 0)
    say("  write", os.pwrite, file, b"DELETED", 2)
    say("  read", os.pread, file, 12, 0)
    say("  write far", os.pwrite, file, b"END", 100_000)
    say("  truncate", os.ftruncate, file, 50_000)
    say("  chmod", os.fchmod, file, 0o4711)
    say("  chown", os.fchown, file, 1001, 1002)
    say("  utime", lambda: os.utime(file, ns=(5, 6)))
    say("  setxattr", os.setxattr, file, "user.x", b"y")
    say("  getxattr", os.getxattr, file, "user.x")
    say("  listxattr", os.listxattr, file)
    say("  fsync", os.fsync, file)
    say("  fallocate", os.posix_fallocate, file, 0, 60_000)
    say("  seek", lambda: os.lseek(file, 0, os.SEEK_DATA))
    say("  lock", fcntl.flock, file, fcntl.LOCK_EX)

    def mapping():
        with mmap.mmap(file, 0) as memory:
            memory[0:3] = b"MAP"
            memory.flush()
        return os.pread(file, 10, 0)

    say("  map", mapping)
    found = os.fstat(file)
    print("  ", f"{found.st_mode:o}", found.st_uid, found.st_gid, found.st_nlink, found.st_size, found.st_ino == number)
    path = f"/proc/self/fd/{file}"
    say("  open again", lambda: os.pread(os.open(path, os.O_RDWR), 6, 0))
    # AT_SYMLINK_FOLLOW, AT_EMPTY_PATH
    say("  link", lambda: call(libc.linkat, -100, path.encode(), -100, b"linked", 0x400))
    say("  link", lambda: call(libc.linkat, file, b"", -100, b"linked", 0x1000))
    say("  name", lambda: os.readlink(path).endswith(" (deleted)"))


def check():
    for name in ("file", "renamed", "over"):
        file = os.open(name, os.O_RDWR)
        if name == "file":
            os.unlink(name)
        else:
            write_file("new", b"new")
            os.rename("new", name)
        print(name, os.path.exists(name))
        use(file)
        os.close(file)
    # A reader opened before the removal, never copied up.
    reader = os.open("again", os.O_RDONLY)
    os.unlink("again")
    write_file("again", b"another")
    say("reader", os.pread, reader, 13, 0)
    say("fchmod", os.fchmod, reader, 0o600)
    say("reader", lambda: (os.pread(reader, 13, 0), os.fstat(reader).st_nlink))
    print(open("again").read())
    # The one of two names.
    file = os.open("twice", os.O_RDWR)
    os.unlink("second")
    print("second", os.fstat(file).st_nlink, os.pwrite(file, b"two", 0))
    print(open("twice").read(5))
    # A mapping outlives both name and descriptor.
    file = os.open("mapped", os.O_RDWR)
    memory = mmap.mmap(file, 0)
    os.close(file)
    os.unlink("mapped")
    print(memory[:5])
    memory[0:3] = b"new"
    memory.flush()
    print(memory[:5])
    memory.close()
    # Directories.
    for name in ("empty", "dir"):
        there = os.open(name, os.O_RDONLY)
        if name == "dir":
            os.unlink("dir/in")
        os.rmdir(name)
        print(name, os.fstat(there).st_nlink, attempt(listed, there))
        say("  create in it", lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=there))
        say("  mkdir in it", lambda: os.mkdir("x", dir_fd=there))
        say("  link into it", lambda: os.link("twice", "x", dst_dir_fd=there))
        say("  rename into it", lambda: os.rename("fifo", "x", dst_dir_fd=there))
        say("  parent", lambda: stat.S_ISDIR(os.stat("..", dir_fd=there).st_mode))
        say("  chmod", os.fchmod, there, 0o700)
        say("  setxattr", os.setxattr, there, "user.x", b"")
        say("  fsync", os.fsync, there)
        say("  made again", os.mkdir, name)
        say("  still empty", listed, there)
        os.fchdir(there)
        say("  getcwd", os.getcwd)
        say("  list", listed, ".")
        os.fchdir(home)
    # Objects without contents.
    for name in ("link", "fifo"):
        path = os.open(name, os.O_PATH | os.O_NOFOLLOW)
        os.unlink(name)
        print(name, os.fstat(path).st_nlink, attempt(lambda: os.readlink("", dir_fd=path)))
    say("left", lambda: sorted(os.listdir(".")))


home = os.open(".", os.O_RDONLY)
