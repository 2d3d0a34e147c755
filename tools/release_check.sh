#!/bin/sh
# Builds wheel and sdist into dist/, and tries them as somebody who installs them would: `make dist`.
#
#     PYTHON=python3.13 tools/release_check.sh
#
# PYTHON makes the new environment, which gets the wheel with the core alone; BUILDER, the one that has `build` and `twine`,
# is the same by default. Needs the package index, as torch is installed anew; nothing is uploaded.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
BUILDER=${BUILDER:-$PYTHON}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

rm -rf dist
"$BUILDER" -m build --outdir dist . >"$place/build.log" 2>&1 || { cat "$place/build.log"; exit 1; }  # the wheel is made of the sdist
"$BUILDER" -m twine check --strict dist/*
"$BUILDER" tools/release_contents.py dist

"$PYTHON" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl
"$BUILDER" tools/release_contents.py --readme >"$place/own_loop.py"  # the README's own loop, as it is written
cd "$place"
PATH="$place/venv/bin:$PATH"
python -c 'import sys, regrow; print("imported regrow", regrow.__version__, "in Python", sys.version.split()[0])'
regrow --version
python -W error::UserWarning own_loop.py
if regrow train digits-iee 2>said; then echo "regrow train ran without its extra"; exit 1; fi
grep -q "pip install 'regrow\[train\]'" said
echo "wheel and sdist are fit to be released"
