"""Writes a tar of 3 GB to standard output: one file of 1 GB, two thousand of 1 MB, all different."""

import io
import os
import sys
import tarfile

BLOCK = os.urandom(1 << 20)


class Numbered(io.RawIOBase):
    """A file of whole blocks, each a rotation of one random block, so that none repeats."""

    def __init__(self, name, blocks):
        self.seed, self.left, self.rest = name.encode(), blocks, b""

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.rest and self.left:
            self.left -= 1
            mark = b"%s %d\n" % (self.seed, self.left)
            self.rest = memoryview(mark + BLOCK[len(mark) :])
        count = min(len(buffer), len(self.rest))
        buffer[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count


with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
    for number in range(2001):
        blocks = 1024 if number == 1000 else 1
        entry = tarfile.TarInfo(f"file{number:04}")
        entry.size = blocks << 20
        entry.mtime = 1_700_000_000
        archive.addfile(entry, io.BufferedReader(Numbered(entry.name, blocks), 1 << 20))
