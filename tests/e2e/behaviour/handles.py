# File handles, files without a name, birth times.
def fill():
    write_file("file", b"content", 0o666)
    make_dir("dir", 0o777)


def handle_of(path):
    room = ctypes.create_string_buffer(136)
    struct.pack_into("I", room, 0, 128)
    mount = ctypes.c_int()
    call(libc.name_to_handle_at, -100, path.encode(), room, ctypes.byref(mount), 0)
    return room


def check():
    handle = handle_of("file")
    same = handle.raw == handle_of("file").raw
    print("handle", same, handle.raw != handle_of("dir").raw)
    root = os.open(".", os.O_RDONLY)
    opened = attempt(lambda: call(libc.open_by_handle_at, root, handle, os.O_RDWR))
    say("by handle", os.read, opened, 7)
    os.rename("file", "dir/renamed")
    with open("dir/renamed", "w") as file:
        file.write("changed")
    say("after a rename", lambda: os.read(call(libc.open_by_handle_at, root, handle, os.O_RDONLY), 7))
    os.unlink("dir/renamed")
    os.close(opened)
    say("after unlink", lambda: call(libc.open_by_handle_at, root, handle, os.O_RDONLY))
    say("O_TMPFILE", lambda: os.open("dir", os.O_TMPFILE | os.O_RDWR) > 0)
    import tempfile

    # What programs fall back to.
    with tempfile.TemporaryFile(dir="dir") as file:
        file.write(b"temporary")
        print("temporary", os.fstat(file.fileno()).st_nlink, os.listdir("dir"))
    os.mkdir("new")
    room = ctypes.create_string_buffer(256)
    call(libc.statx, -100, b"new", 0, 0xFFF, room)
    print("statx btime", bool(struct.unpack_from("I", room, 0)[0] & 0x800))
    print("statx basic", struct.unpack_from("I", room, 0)[0] & 0x7FF == 0x7FF)
    print("reused", *reused(root))


def reused(root):
    """Whether a number is given again within reach, and what a handle of its first owner opens."""
    old = {}
    for number in range(200):
        write_file("new/first", b"first", 0o666)
        old[os.stat("new/first").st_ino] = handle_of("new/first")
        os.unlink("new/first")
        # Times of birth are no finer than the kernel's clock tick.
        time.sleep(0.02)
        write_file("new/second", b"second", 0o666)
        handle = old.get(os.stat("new/second").st_ino)
        if handle:
            outcome = attempt(lambda: call(libc.open_by_handle_at, root, handle, os.O_RDONLY))
            return "again", outcome
        os.unlink("new/second")
    return "never", None
