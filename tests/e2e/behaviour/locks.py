# flock, POSIX and OFD locks between processes, and leases.
F_OFD_GETLK, F_OFD_SETLK = 36, 37


def fill():
    write_file("file", b"x" * 1000, 0o666)
    write_file("readonly", b"x" * 1000, 0o444)


def record(kind, start, length, pid=0):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, pid)


def lock(file, command, kind, start=0, length=0):
    fcntl.fcntl(file, command, record(kind, start, length))


def holder(file, command, kind, start=0, length=0):
    found = struct.unpack("hhqqi4x", fcntl.fcntl(file, command, record(kind, start, length)))
    return found[0], found[2], found[3], found[4] > 0, found[4] == os.getppid()


def elsewhere(act):
    ended(child(act))


def opened(flags=os.O_RDWR, path="file"):
    return os.open(path, flags)


def flocks():
    for mine in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        file = opened()
        say(f"flock {mine}", fcntl.flock, file, mine | fcntl.LOCK_NB)
        for theirs in (fcntl.LOCK_SH, fcntl.LOCK_EX):
            elsewhere(lambda: say(f"  other process {theirs}", fcntl.flock, opened(), theirs | fcntl.LOCK_NB))
            say(f"  other descriptor {theirs}", fcntl.flock, opened(), theirs | fcntl.LOCK_NB)
            elsewhere(lambda: say(f"  inherited {theirs}", fcntl.flock, file, theirs | fcntl.LOCK_NB))
        # POSIX locks and flocks do not meet.
        elsewhere(lambda: say("  POSIX", lock, opened(), fcntl.F_SETLK, fcntl.F_WRLCK))
        say("unlock", fcntl.flock, file, fcntl.LOCK_UN)
        elsewhere(lambda: say("  after it", fcntl.flock, opened(), fcntl.LOCK_EX | fcntl.LOCK_NB))
        os.close(file)
    reader = opened(os.O_RDONLY, "readonly")
    say("exclusive flock of a reader", fcntl.flock, reader, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(reader)


def ranges(set_command, get_command, name):
    file = opened()
    say(f"{name} write lock 100-199", lock, file, set_command, fcntl.F_WRLCK, 100, 100)
    say(f"{name} read lock 300-", lock, file, set_command, fcntl.F_RDLCK, 300, 0)

    def others():
        mine = opened()
        for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
            for start, length in ((0, 100), (0, 101), (199, 1), (200, 100), (250, 100), (1000, 1), (0, 0)):
                say(f"  {kind} {start} {length}", lock, mine, set_command, kind, start, length)
                lock(mine, set_command, fcntl.F_UNLCK, start, length)
                say("    held by", holder, mine, get_command, kind, start, length)

    elsewhere(others)
    say("split", lock, file, set_command, fcntl.F_UNLCK, 140, 20)
    elsewhere(others)
    # A process drops its POSIX locks with any of its descriptors of the file, not its OFD locks.
    os.close(opened())
    elsewhere(lambda: say("  after a close", lock, opened(), set_command, fcntl.F_WRLCK, 100, 10))
    os.close(file)
    elsewhere(lambda: say("  after the last close", lock, opened(), set_command, fcntl.F_WRLCK, 100, 10))
    reader = opened(os.O_RDONLY)
    say("write lock of a reader", lock, reader, set_command, fcntl.F_WRLCK)
    os.close(reader)


def waiting():
    """A process that waits gets the lock when the other goes, and a deadlock is seen."""
    file = opened()
    lock(file, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 1)
    ready, told = os.pipe()

    def wait():
        mine = opened()
        lock(mine, fcntl.F_SETLK, fcntl.F_WRLCK, 1, 1)
        os.write(told, b"x")
        say("  waited", lock, mine, fcntl.F_SETLKW, fcntl.F_WRLCK, 0, 1)

    pid = child(wait)
    os.read(ready, 1)
    while b"->" not in open("/proc/locks", "rb").read():
        time.sleep(0.01)
    say("deadlock", lock, file, fcntl.F_SETLKW, fcntl.F_WRLCK, 1, 1)
    os.close(file)
    ended(pid)
    # The lock of one that was killed is free.
    pid = child(lambda: (lock(opened(), fcntl.F_SETLK, fcntl.F_WRLCK), os.write(told, b"x"), signal.pause()))
    os.read(ready, 1)
    say("held", lock, opened(), fcntl.F_SETLK, fcntl.F_WRLCK)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    say("killed", lock, opened(), fcntl.F_SETLK, fcntl.F_WRLCK)


def check():
    flocks()
    ranges(fcntl.F_SETLK, fcntl.F_GETLK, "POSIX")
    ranges(F_OFD_SETLK, F_OFD_GETLK, "OFD")
    # A lock taken before the copy-up excludes those who come after it.
    file = opened(os.O_RDONLY, "readonly")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.chmod("readonly", 0o666)
    with open("readonly", "r+b") as changed:
        changed.write(b"copied up")
    elsewhere(lambda: say("flock over a copy-up", fcntl.flock, opened(os.O_RDWR, "readonly"), fcntl.LOCK_EX | fcntl.LOCK_NB))
    waiting()
