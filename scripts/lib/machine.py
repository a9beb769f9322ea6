"""The machine that measures: its description, its disk and page cache, times and sizes."""

import os
import pathlib
import platform
import sys
import time

BUFFER_BYTES = 8 << 20
WEIGHTS = (".safetensors", ".zst", ".bin")

# A process begins its life with the peak memory of the one that started it, so a small one of its own starts thalweg.
LAUNCHER = """
import json, os, subprocess, sys, time
started = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
seconds = time.monotonic() - started
child.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps({
    "seconds": seconds, "exit": child.returncode, "peak_bytes": usage.ru_maxrss * 1024,
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
}))
"""


def weight_files(folder):
    files = sorted(path for path in folder.iterdir() if path.name.endswith(WEIGHTS))
    if not files:
        sys.exit(f"bench: no weights in {folder}")
    return files


def read_files(files):
    buffer = bytearray(BUFFER_BYTES)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass


def drop_from_cache(files):
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if os.geteuid() == 0:
        try:
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        except OSError:
            pass  # A container: the advice above is what there is.


def timed(action):
    started = time.monotonic()
    action()
    return time.monotonic() - started


def available_memory():
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def bytes_of(text):
    """1GiB, 512MiB, 2GB, or a number of bytes."""
    units = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1}
    lower = text.strip().lower()
    unit = next((unit for unit in units if lower.endswith(unit)), "")
    return int(float(lower.removesuffix(unit)) * units.get(unit, 1))


def machine():
    """The machine in one line."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{os.cpu_count()} x {model}, {gigabytes:.0f} GB memory, Linux {platform.release()}"
