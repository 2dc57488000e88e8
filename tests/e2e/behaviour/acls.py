# POSIX ACLs: who gets in, what is inherited, what chmod and umask make of them.
def fill():
    write_file("file", b"content", 0o640, 1000, 1000)
    run_ok("setfacl", "-m", "u:1001:rw,g:2000:r,m::rw", "file")
    make_dir("dir", 0o750, 1000, 1000)
    run_ok("setfacl", "-m", "u:1001:rwx", "dir")
    run_ok("setfacl", "-d", "-m", "u:1001:rwx,u:1002:rx,g::rx,o::-,m::rwx", "dir")
    write_file("dir/old", b"", 0o644, 1000)
    make_dir("open", 0o777)
    run_ok("setfacl", "-d", "-m", "u::rwx,g::rwx,o::rwx", "open")
    write_file("program", b"#!/bin/sh\n", 0o6755, 1000, 1000)
    run_ok("setfacl", "-m", "u:1001:rwx", "program")


def run_ok(*command):
    subprocess.run(command, check=True)


def acl(path):
    print(run("getfacl", "-n", path), shown(path))


def use(path):
    for flags in ("r", "r+"):
        say(f"open {path} {flags}", lambda: open(path, flags).close())


def check():
    for path in ("file", "dir", "dir/old", "open", "program"):
        acl(path)
    for uid, groups in ((1000, ()), (1001, ()), (1002, ()), (1003, (2000,)), (1003, ())):
        print("user", uid, groups)
        as_user(uid, lambda: use("file"), None, groups)
        as_user(uid, lambda: say("list dir", listed, "dir"), None, groups)
    # The first change copies the file up, its ACL with it.
    os.truncate("file", 3)
    acl("file")
    as_user(1001, lambda: use("file"))
    # chmod changes the mask, not the group's entry.
    for mode in (0o600, 0o664, 0o2770, 0o007):
        say(f"chmod {mode:o}", os.chmod, "file", mode)
        acl("file")
        as_user(1001, lambda: use("file"))

    # New objects get the default ACL instead of the umask; symbolic links none.
    def make():
        os.umask(0o077)
        for base in ("dir", "open"):
            os.close(os.open(base + "/new", os.O_CREAT | os.O_WRONLY, 0o666))
            os.close(os.open(base + "/program", os.O_CREAT | os.O_WRONLY, 0o777))
            os.close(os.open(base + "/closed", os.O_CREAT | os.O_WRONLY, 0o600))
            os.mkdir(base + "/sub", 0o777)
            os.mkdir(base + "/sub/sub", 0o750)
            os.mkfifo(base + "/fifo", 0o666)
            os.symlink("new", base + "/link")
            os.mknod(base + "/socket", stat.S_IFSOCK | 0o666)

    as_user(1001, make)
    names = ("new", "program", "closed", "sub", "sub/sub", "fifo", "socket")
    for name in names:
        acl("dir/" + name)
        acl("open/" + name)
    print(shown("dir/link"))
    access_acl = "system.posix_acl_access"
    say("acl of a link", lambda: os.getxattr("dir/link", access_acl, follow_symlinks=False))
    # What is moved or linked into a directory keeps its own.
    os.rename("program", "dir/moved")
    acl("dir/moved")
    os.link("file", "dir/linked")
    acl("dir/linked")

    def set_by_user():
        say("setfacl another's", run, "setfacl", "-m", "u:1002:r", "file")
        say("setfacl own", run, "setfacl", "-m", "u:1002:r", "dir/new")

    as_user(1001, set_by_user)
    acl("dir/new")
    # Set-group-id goes when one who is not in the group sets an ACL.
    write_file("foreign", b"", 0o2775, 1001, 4000)
    as_user(1001, lambda: say("setfacl foreign", run, "setfacl", "-m", "u:1002:r", "foreign"))
    acl("foreign")
    for arguments in (("-b", "file"), ("-k", "dir"), ("-b", "dir")):
        say("setfacl " + arguments[0], run, "setfacl", *arguments)
        acl(arguments[1])
    say("default ACL of a file", run, "setfacl", "-d", "-m", "u:1:r", "file")
    say("broken ACL", os.setxattr, "file", "system.posix_acl_access", b"xx")
    say("ACL of the mode alone", run, "setfacl", "--set", "u::rw,g::r,o::-", "file")
    say("  listed", os.listxattr, "file")
    acl("file")
    # Recursive copies keep them.
    say("cp -a", run, "cp", "-a", "dir", "copy")
    for name in ("", *("/" + name for name in names)):
        acl("copy" + name)
