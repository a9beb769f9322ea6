"""The bytes of a merge moved by the plainest means, and programs run with their time and memory taken.

Used by peers.py and scale.py.
"""

import json
import mmap
import os
import subprocess
import sys
import threading

from machine import BUFFER_BYTES, LAUNCHER, timed, weight_files

ALIGNED = 4096
PIECE_BYTES = 4 << 20


def copy_same_traffic(models, path, length):
    """Seconds to read all models while a file as long as the output is written and synced."""

    def action():
        reader = threading.Thread(target=read_by_threads, args=(models,))
        reader.start()
        write_direct(path, length)
        reader.join()

    return timed_writing(path, action)


def timed_writing(path, action):
    """Seconds of `action`, which makes the file `path`; removing it can take longer than writing it did."""
    try:
        return timed(action)
    finally:
        path.unlink(missing_ok=True)


def write_direct(path, length):
    """Past the page cache where the file system allows it, from memory that is not all zero, and synced."""
    left = length // ALIGNED * ALIGNED
    block = mmap.mmap(-1, BUFFER_BYTES)
    block.write(os.urandom(BUFFER_BYTES))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        descriptor = os.open(path, flags | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, flags)
    os.posix_fallocate(descriptor, 0, left)
    while left:
        left -= os.write(descriptor, memoryview(block)[: min(left, BUFFER_BYTES)])
    os.fsync(descriptor)
    os.close(descriptor)


def read_by_threads(models, threads=2):
    """Two threads take piece after piece, as thalweg's readers do with the blocks of a tensor."""
    pieces = [
        (path, begin)
        for path in (path for model in models for path in weight_files(model))
        for begin in range(0, path.stat().st_size, PIECE_BYTES)
    ]
    pieces.reverse()

    def work():
        buffer = bytearray(PIECE_BYTES)
        while pieces:
            try:
                path, begin = pieces.pop()
            except IndexError:
                return
            with open(path, "rb", buffering=0) as file:
                os.preadv(file.fileno(), [buffer], begin)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def launch(command):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    launcher = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, check=True,
    )
    measured = json.loads(launcher.stdout)
    if measured["exit"] != 0:
        sys.exit(f"exit code {measured['exit']}: {' '.join(command)}\n{launcher.stderr[-2000:]}")
    return measured
