# Renaming: every kind of object onto every kind, with every flag, for root and a stranger.
import itertools

SOURCES = ["file", "linked", "symlink", "fifo", "empty", "full", "parent-of-new", "missing"]
TARGETS = ["nothing", "file", "symlink", "empty", "full"]
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
FLAGS = [0, NOREPLACE, EXCHANGE, WHITEOUT, NOREPLACE | WHITEOUT, EXCHANGE | NOREPLACE, EXCHANGE | WHITEOUT, 8]
WHO = [0, 1234]


def make(kind, path):
    if kind == "file":
        write_file(path, path.encode(), 0o644)
    elif kind == "linked":
        write_file(path, b"linked", 0o644)
        os.link(path, path + "-too")
    elif kind == "symlink":
        os.symlink("nowhere", path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("empty", "full"):
        make_dir(path, 0o777)
        if kind == "full":
            write_file(path + "/inner", b"inner", 0o644)


def cases():
    for number, case in enumerate(itertools.product(SOURCES, TARGETS, FLAGS, WHO)):
        yield f"c{number}", *case


def fill():
    for dir, source, target, _, _ in cases():
        make_dir(dir, 0o777)
        make_dir(dir + "/from", 0o777)
        make_dir(dir + "/to", 0o777)
        make(source, dir + "/from/a")
        make(target, dir + "/to/b")
        os.lchown(dir + "/to", 55, 66)
        os.chmod(dir + "/from", 0o2777)


def rename(old, new, flags):
    return call(libc.renameat2, -100, old.encode(), -100, new.encode(), flags)


def look(dir):
    """All that is in it: where, what, whose."""
    found = []
    for path, dirs, files in os.walk(dir):
        for name in sorted(dirs + files):
            at = os.lstat(os.path.join(path, name))
            place = os.path.join(path, name)[len(dir) :]
            device = at.st_rdev if stat.S_ISCHR(at.st_mode) else ""
            found.append(f"{place}={at.st_mode:o}/{at.st_uid}:{at.st_gid}/{device}")
        dirs.sort()
    return " ".join(sorted(found))


def check():
    for dir, source, target, flags, who in cases():
        new = dir + "/to/b"
        if source == "parent-of-new":
            make_dir(dir + "/from/a", 0o777)
            new = dir + "/from/a/b"
        what = f"{source} onto {target}, flags {flags}, {who}"
        as_user(who, lambda: say(what, rename, dir + "/from/a", new, flags))
        print(" ", look(dir), flush=True)
    # What a whiteout inherits.
    make_dir("acl", 0o777)
    subprocess.run(["setfacl", "-d", "-m", "u:7:rwx", "acl"], check=True)
    write_file("acl/file", b"", 0o644)
    say("with a default ACL", rename, "acl/file", "acl/moved", WHITEOUT)
    print(os.listxattr("acl/file"), look("acl"))
