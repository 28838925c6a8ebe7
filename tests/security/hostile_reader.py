"""A reader that crashes, as one in C does on a crafted file; and one that never ends."""

import os
import time


def crash(path):
    os.abort()


def fill(path):
    print(len(bytes(2 << 30)))


def hang(path):
    time.sleep(3600)
