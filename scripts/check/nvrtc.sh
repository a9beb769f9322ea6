#!/usr/bin/env bash
# Compiles the CUDA kernels without a toolkit and without a device; any warning is a failure:
# scripts/check/nvrtc.sh [--write]
#
# With today's NVRTC for compute_80, 90 and 120, and with an older one, whose PTX older drivers take, for compute_80:
# that must be the kernels.ptx beside the source byte for byte; --write puts it there. Both libraries are Python packages of
# NVIDIA's, downloaded under target/ the first time (115 MB). Exit code 75: they could not be fetched.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

# What it ends with when the compiler cannot be had: nothing is known then of the kernels.
NOT_THERE=75
NEW=12.9.86
OLD=12.1.105
source=src/device/cuda/kernels.cu
shipped=src/device/cuda/kernels.ptx
home=$target/nvrtc

case ${1-} in
    "" | --write) ;;
    *) die "unknown argument $1" ;;
esac
if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "nvrtc: python3 with pip is needed to fetch NVRTC: install python3-pip" >&2
    exit $NOT_THERE
fi

# Prints the folder of the libraries of NVRTC $1.
folder() {
    local into=$home/$1
    if ! [ -f "$into/done" ]; then
        rm -rf "$into"
        mkdir -p "$into"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$into" \
            "nvidia-cuda-nvrtc-cu12==$1" >&2 || {
            echo "nvrtc: cannot fetch nvidia-cuda-nvrtc-cu12 $1: the package index must be reachable, as pip is set up here" >&2
            exit $NOT_THERE
        }
        python3 -m zipfile -e "$into"/*.whl "$into"
        rm "$into"/*.whl
        touch "$into/done"
    fi
    echo "$into/nvidia/cuda_nvrtc/lib"
}

# Compiles for architecture $2 with NVRTC in folder $1, to the file $3 if given.
compile() {
    LD_LIBRARY_PATH=$1 python3 scripts/check/nvrtc.py "$1/libnvrtc.so.12" "$source" "${@:2}"
}

new=$(folder "$NEW")
old=$(folder "$OLD")
for architecture in compute_80 compute_90 compute_120; do
    compile "$new" "$architecture"
done
made=$home/kernels.ptx
compile "$old" compute_80 "$made"
if [ "${1-}" = --write ]; then
    cp "$made" "$shipped"
    echo "$shipped written"
fi
cmp "$made" "$shipped" || die "$shipped is not what $source gives: run scripts/check/nvrtc.sh --write"
echo "nvrtc: $shipped is up to date; no warnings"
