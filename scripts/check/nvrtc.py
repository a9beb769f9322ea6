#!/usr/bin/env python3
"""Compiles a CUDA source with the NVRTC library to PTX, without a toolkit and without a device.

usage: nvrtc.py LIBRARY SOURCE ARCHITECTURE [OUTPUT]

Fails when the compiler says anything at all, warnings included. Called by nvrtc.sh.
"""

import ctypes
import os
import sys

OPTIONS = ["--fmad=false", "--ftz=false", "--prec-div=true", "--std=c++17", "--display-error-number"]


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    library, source, architecture = sys.argv[1:4]
    nvrtc = ctypes.CDLL(library)
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p

    def check(code, what):
        if code:
            sys.exit(f"nvrtc: cannot {what}: {nvrtc.nvrtcGetErrorString(code).decode()}")

    def text(size_of, read, what):
        size = ctypes.c_size_t()
        check(size_of(program, ctypes.byref(size)), what)
        buffer = ctypes.create_string_buffer(size.value)
        check(read(program, buffer), what)
        return buffer.value

    with open(source, "rb") as file:
        code = file.read()
    program = ctypes.c_void_p()
    name = os.path.basename(source).encode()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, name, 0, None, None), "begin")
    options = [*OPTIONS, f"--gpu-architecture={architecture}", f"--include-path={os.path.dirname(source) or '.'}"]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    outcome = nvrtc.nvrtcCompileProgram(program, len(options), array)
    log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, "read the log").decode().strip()
    if outcome or log:
        sys.exit(f"nvrtc: {source} for {architecture}:\n{log}")
    ptx = text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, "read the PTX")
    if len(sys.argv) == 5:
        with open(sys.argv[4], "wb") as file:
            file.write(ptx)
    entries = ptx.count(b".visible .entry")
    if not entries:
        sys.exit(f"nvrtc: {source} has no kernel")
    print(f"{os.path.basename(source)}: {entries} kernels for {architecture}, {len(ptx)} bytes of PTX, no warnings")


main()
