# shellcheck shell=bash
# Common part of all scripts. A script begins with its own help, a comment, and then
#
#     # shellcheck source=scripts/lib.sh
#     . "$(dirname "$0")/../lib.sh"
#
# From there on the current folder is the repository, $target is cargo's target folder, an error ends the script, and
# --help has been answered with the comment.
set -Eeuo pipefail

script=$(basename "$0" .sh)
case ${1:-} in
    -h | --help)
        # The lines behind #! up to the first that is no comment.
        sed -n '2,/^[^#]/{/^#/!d;/^# shellcheck/!s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
# Modules that Python programs share; no caches beside the sources.
export PYTHONPATH=scripts/lib PYTHONDONTWRITEBYTECODE=1

say() { printf '\n== %s\n' "$*"; }

die() {
    printf '%s: %s\n' "$script" "$*" >&2
    exit 1
}

# build NAME ..: builds release binaries, unless SKIP_BUILD is set.
build() {
    [ -z "${SKIP_BUILD:-}" ] || return 0
    cargo build --release --locked --workspace "${@/#/--bin=}"
}

# work_in FOLDER: makes $work, an empty folder that is removed at the end and after an interrupt.
work_in() {
    work=$1
    rm -rf "${work:?}"
    mkdir -p "$work"
    trap 'rm -rf "${work:?}"' EXIT
    trap 'exit 130' INT TERM
}

# python_with NAME "MODULE .." PACKAGE ..: prints a Python that can import the modules: $PYTHON where that is set, else one
# in a virtual environment under the target folder, into which the packages are installed the first time.
python_with() {
    local name=$1 imports=${2// /, } python=${PYTHON:-$target/venv-$1/bin/python}
    shift 2
    if ! "$python" -c "import $imports" 2>/dev/null; then
        [ -z "${PYTHON:-}" ] || die "$PYTHON lacks one of $imports"
        rm -rf "$target/venv-$name"
        python3 -m venv "$target/venv-$name" >&2
        "$target/venv-$name/bin/pip" install --quiet "$@" >&2
    fi
    echo "$python"
}

# mergekit_venv: prints a virtual environment with mergekit: $MERGEKIT_VENV where that is set, else one under the target
# folder, made the first time (downloads torch).
mergekit_venv() {
    local venv=${MERGEKIT_VENV:-$target/mergekit-venv}
    if ! [ -x "$venv/bin/mergekit-yaml" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv" >&2
        "$venv/bin/pip" install --quiet "mergekit==0.1.5" "torch==2.12.1" numpy >&2
    fi
    echo "$venv"
}

# make_model FOLDER OPTION ..: makes a test model with these options of make-checkpoint, or keeps one that is whole: what an
# interrupted run left has no mark and is made anew.
make_model() {
    local folder=$1
    shift
    [ -e "$folder.made" ] && return
    rm -rf "${folder:?}"
    "$target/release/make-checkpoint" --out "$folder" "$@"
    touch "$folder.made"
}
