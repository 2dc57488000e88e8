# Which names there can be, and what is too long.
def fill():
    os.mkdir("dir")
    for name in odd_names():
        write_file(b"dir/" + name, name[:10])
    os.mkdir("depth")
    there = os.open("depth", os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 250, dir_fd=there)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=there)
        os.close(there)
        there = below
    os.close(os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=there))


def odd_names():
    yield from (bytes([byte]) for byte in range(1, 256) if byte not in b"/.")
    yield from (b"...", b". ", b" .", b"-rf", b"*", b"\\", b"\n\n", b"\xff\xfe", b"caf\xc3\xa9", b"cafe\xcc\x81",
                b"a" * 255, b"\xff" * 255, b"COM1", b"a:b", b"x" * 254 + b"\n")


def check():
    # In a lower these are AUFS's whiteouts; made in the mount they are names like others.
    for name in (".wh.new", ".wh..wh..opq", ".wh.A"):
        write_file("dir/" + name, name.encode())
        say(name, lambda: open("dir/" + name).read())
        say("  A", os.path.exists, "dir/A")
        say("  unlink", os.unlink, "dir/" + name)
    say("listed", lambda: sorted(os.listdir(b"dir")) == sorted(odd_names()))
    for name in odd_names():
        path = b"dir/" + name
        say(f"{name[:20]}", lambda: (open(path, "rb").read(), os.stat(path).st_size))
        other = b"dir/" + (name[:-1] + b"~" if len(name) == 255 else name + b"~")
        say("  rename", os.rename, path, other)
        say("  there", lambda: (os.path.exists(path), os.path.exists(other)))
        say("  create again", write_file, path, b"new")
        say("  unlink", os.unlink, other)
    say("listed", lambda: sorted(os.listdir(b"dir")) == sorted(odd_names()))
    too_long = "n" * 256
    for what, act in (
        ("stat", os.stat), ("open", lambda path: os.open(path, os.O_RDONLY)),
        ("create", lambda path: os.open(path, os.O_CREAT | os.O_WRONLY)), ("mkdir", os.mkdir),
        ("rmdir", os.rmdir), ("unlink", os.unlink), ("mkfifo", os.mkfifo),
        ("symlink", lambda path: os.symlink("x", path)), ("readlink", os.readlink),
        ("link to", lambda path: os.link("dir/A", path)), ("link", lambda path: os.link(path, "dir/linked")),
        ("rename to", lambda path: os.rename("dir/A", path)), ("rename", lambda path: os.rename(path, "dir/r")),
        ("chmod", lambda path: os.chmod(path, 0o600)), ("chdir", os.chdir), ("statvfs", os.statvfs),
        ("setxattr", lambda path: os.setxattr(path, "user.x", b"")),
    ):
        for label, path in (
            ("256 bytes", too_long), ("256 bytes below", too_long + "/x"), ("255 missing", "n" * 255 + "/x"),
            ("path of 4096", "./" * 2047 + "x"), ("path of 4097", "./" * 2048 + "x"), ("empty", ""),
            ("slash at the end", "dir/B/"), ("of a new one", "dir/new/"), ("dot", "dir/."), ("dots", "dir/..")):
            if label == "dots" and what in ("chdir", "chmod", "setxattr"):
                continue
            if label == "dot" and what == "chdir" or label == "path of 4096" and what in ("create", "mkdir", "mkfifo"):
                continue
            result = attempt(act, path)
            print(what, label, result if isinstance(result, str) else "ok")
    for length in (1, 255, 1000, 4094, 4095, 4096):
        say(f"symbolic link of {length}", os.symlink, "t" * length, f"link{length}")
        say("  read", lambda: len(os.readlink(f"link{length}")))
        say("  size", lambda: os.lstat(f"link{length}").st_size)
    for start in range(39, 42):
        os.symlink("dir", f"loop{start}-0")
        for number in range(1, start):
            os.symlink(f"loop{start}-{number - 1}", f"loop{start}-{number}")
        say(f"{start} symbolic links", lambda: stat.S_ISDIR(os.stat(f"loop{start}-{start - 1}").st_mode))
    # Deeper than a path can be.
    there = os.open("depth", os.O_RDONLY)
    for _ in range(30):
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=there)
        os.close(there)
        there = below
    say("deep", listed, there)
    say("  write", lambda: os.write(os.open("deep", os.O_WRONLY, dir_fd=there), b"deep"))
    say("  make", lambda: os.mkdir("made", dir_fd=there))
    say("  rename", lambda: os.rename("deep", "made/moved", src_dir_fd=there, dst_dir_fd=there))
    say("  size", lambda: os.stat("made/moved", dir_fd=there).st_size)
    os.fchdir(there)
    say("  getcwd", lambda: len(os.getcwd()) > 4096)
    for name in ("..", "../.."):
        say(f"  {name}", lambda: listed(name))
