#!/usr/bin/env bash
# Writes tests/data/digits-{train,test}.safetensors, which are checked in: scikit-learn's 1,797 digits of 8 x 8 pixels,
# split once by a seed. PYTHON names an interpreter that has scikit-learn; without it one is made under target/.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    venv=${CARGO_TARGET_DIR:-target}/digits-venv
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet scikit-learn
    PYTHON=$venv/bin/python
fi
"$PYTHON" scripts/make-digits.py tests/data
ls -l tests/data/digits-*.safetensors
