#!/usr/bin/env python3
"""Times thalweg merge beside what the machine can do with the same bytes, in one run and by turns.

Called by bench.sh and big-run.sh. Each round measures, after dropping the page cache and again with it warm:
sequential reading of all inputs, writing and syncing a file as large as the output, a plain copy of the same traffic
(cp of one model while the others are read, then sync) and the merge itself. Needs nothing but Python.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import threading
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


def main():
    options = arguments()
    bench = Bench(options)
    states = options.states.split(",")
    if "warm" in states and bench.input_bytes + bench.output_bytes > 0.8 * available_memory():
        print("The models do not fit the page cache: only cold runs.")
        states.remove("warm")
    describe(bench, states)
    times = {}
    for number in range(options.runs):
        for state in states:
            for name, action, _ in bench.steps():
                bench.prepare(state)
                seconds = action()
                times.setdefault((state, name), []).append(seconds)
                print(f"  round {number + 1}/{options.runs} {state:4} {name:7} {seconds:8.2f} s", flush=True)
    for state in states:
        table(bench, state, times)
    ok = memory_line(bench, options.memory)
    verify(bench)
    sys.exit(0 if ok else 1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thalweg", required=True, help="the release binary")
    parser.add_argument("--work", required=True, help="folder for outputs, on the disk of the inputs")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--states", default="cold,warm")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--merge-option", action="append", default=[], help="handed on to thalweg merge")
    parser.add_argument("models", nargs="+")
    return parser.parse_args()


class Bench:
    def __init__(self, options):
        self.thalweg = options.thalweg
        self.models = [pathlib.Path(model) for model in options.models]
        self.work = pathlib.Path(options.work)
        self.output = self.work / "merged"
        self.merge_command = [
            self.thalweg, "merge", *options.models, "--memory", options.memory, "--quiet", "--out", str(self.output),
            *options.merge_option,
        ]
        self.inputs = [weight_files(model) for model in self.models]
        self.input_bytes = sum(path.stat().st_size for files in self.inputs for path in files)
        self.output_bytes = sum(path.stat().st_size for path in self.inputs[0])
        self.peak_bytes = 0
        self.cpu_seconds = []
        self.work.mkdir(parents=True, exist_ok=True)

    def steps(self):
        """What a round measures: name, action, bytes read and written."""
        return [
            ("read", self.read, self.input_bytes),
            ("write", self.write, self.output_bytes),
            ("memcpy", self.memcpy, 2 * self.output_bytes),
            ("copy", self.copy, self.input_bytes + self.output_bytes),
            ("merge", self.merge, self.input_bytes + self.output_bytes),
        ]

    def prepare(self, state):
        """Leaves no unwritten data behind, and the inputs out of the page cache or in it."""
        os.sync()
        files = [path for files in self.inputs for path in files]
        if state == "warm":
            read_files(files)
            return
        drop_from_cache(files)

    def read(self):
        return timed(lambda: read_files(path for files in self.inputs for path in files))

    def write(self):
        path = self.work / "written"
        block = os.urandom(BUFFER_BYTES)

        def action():
            with open(path, "xb", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, self.output_bytes)
                left = self.output_bytes
                while left:
                    left -= file.write(block[: min(left, len(block))])
                os.fsync(file.fileno())

        seconds = timed(action)
        path.unlink()
        return seconds

    def memcpy(self):
        """Scaled from a piece that is far larger than the processor's caches."""
        length = min(self.output_bytes, 512 << 20)
        source, target = bytearray(os.urandom(1 << 20)) * (-(-length >> 20)), bytearray(length)
        view = memoryview(source)[:length]
        target[:] = view

        def action():
            memoryview(target)[:] = view

        return timed(action) * self.output_bytes / length

    def copy(self):
        target = self.work / "copied"

        def action():
            others = [path for files in self.inputs[1:] for path in files]
            reader = threading.Thread(target=read_files, args=(others,))
            reader.start()
            subprocess.run(["cp", "-r", "-L", str(self.models[0]), str(target)], check=True)
            for path in weight_files(target):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            reader.join()

        seconds = timed(action)
        shutil.rmtree(target)
        return seconds

    def merge(self):
        shutil.rmtree(self.output, ignore_errors=True)
        launcher = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *self.merge_command], stdout=subprocess.PIPE, text=True, check=True
        )
        measured = json.loads(launcher.stdout)
        if measured["exit"] != 0:
            sys.exit(f"bench: merge ended with exit code {measured['exit']}: {' '.join(self.merge_command)}")
        self.peak_bytes = max(self.peak_bytes, measured["peak_bytes"])
        self.cpu_seconds.append(measured["cpu_seconds"])
        return measured["seconds"]


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


def describe_machine():
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    print(f"machine: {os.cpu_count()} x {model}, {gigabytes:.0f} GB memory, Linux {platform.release()}")


def describe(bench, states):
    describe_machine()
    print(f"job:     {len(bench.models)} models, {bench.input_bytes / 1e9:.2f} GB in, about {bench.output_bytes / 1e9:.2f} GB out")
    print(f"command: {' '.join(bench.merge_command)}")
    if "cold" in states and os.geteuid() != 0:
        print("note:    not root, so cold means that the inputs alone were dropped from the page cache")


def table(bench, state, times):
    copy = statistics.median(times[state, "copy"])
    print(f"\n{state:8}{'GB moved':>10}{'median s':>10}{'least s':>10}{'most s':>10}{'GB/s':>8}{'/ copy':>8}")
    for name, _, moved in bench.steps():
        seconds = times[state, name]
        median = statistics.median(seconds)
        ratio = f"{median / copy:.2f}" if name == "merge" else ""
        print(
            f"{name:8}{moved / 1e9:10.2f}{median:10.2f}{min(seconds):10.2f}{max(seconds):10.2f}"
            f"{moved / 1e9 / median:8.2f}{ratio:>8}"
        )


def memory_line(bench, memory):
    budget = bytes_of(memory)
    within = bench.peak_bytes <= budget
    print(
        f"\nmerge: peak resident memory {bench.peak_bytes / 2**20:.0f} MiB of {budget / 2**20:.0f} MiB allowed"
        f"{'' if within else ': TOO MUCH'}; processor time {statistics.median(bench.cpu_seconds):.1f} s"
    )
    return within


def verify(bench):
    command = [bench.thalweg, "verify", str(bench.output)]
    seconds = timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))
    print(f"verify: the output is whole ({seconds:.1f} s)")
    shutil.rmtree(bench.output)


if __name__ == "__main__":
    main()
