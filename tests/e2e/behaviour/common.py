# Shared by the scripts: each says, line by line, what it does and what comes of it.
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback

# What waits for ever fails.
signal.alarm(300)
libc = ctypes.CDLL(None, use_errno=True)


def call(function, *arguments):
    """A C function that returns -1 with errno."""
    result = function(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def attempt(act, *arguments):
    """The result, or the name of the error."""
    try:
        return act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def say(what, act, *arguments):
    print(f"{what}: {attempt(act, *arguments)}", flush=True)


def child(act):
    """Does something in a process of its own, which must end well."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            sys.stdout.flush()
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    return pid


def ended(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status


def as_user(uid, act, gid=None, groups=()):
    """Does something as another user."""

    def there():
        os.setgroups(groups)
        os.setgid(uid if gid is None else gid)
        os.setuid(uid)
        act()

    ended(child(there))


def write_file(path, content=b"", mode=0o644, uid=0, gid=None):
    with open(path, "wb") as file:
        file.write(content)
    os.chown(path, uid, uid if gid is None else gid)
    os.chmod(path, mode)


def make_dir(path, mode=0o755, uid=0, gid=None):
    os.mkdir(path)
    os.chown(path, uid, uid if gid is None else gid)
    os.chmod(path, mode)


def listed(dir):
    """Names in a directory, which each filesystem has in an order of its own."""
    return sorted(os.listdir(dir))


def shown(path):
    """Mode, owner, group, links and size (of a directory, each filesystem has its own)."""
    found = os.lstat(path)
    size = "" if stat.S_ISDIR(found.st_mode) else found.st_size
    return f"{found.st_mode:o} {found.st_uid}:{found.st_gid} {found.st_nlink} {size}"


def run(*command):
    """Output and status of a program."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return f"{done.returncode} {done.stdout.decode(errors='backslashreplace')!r}"
