#!/usr/bin/env bash
# Install a wheel in an empty environment, unpack the Chinese course from it, and run its notebooks in fast mode, offline.
#   tools/try_wheel.sh <wheel>
set -euo pipefail
wheel=$(realpath "$1")
offline=$(realpath "$(dirname "$0")/offline.sh")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
export XDG_DATA_HOME="$scratch/data" XDG_CACHE_HOME="$scratch/cache" CROPKIT_FAST=1
"${PYTHON:-python3}" -m venv own
${TORCH_INDEX:+own/bin/python -m pip install --quiet --index-url "$TORCH_INDEX" torch torchvision}
own/bin/python -m pip install --quiet "$wheel[course]"
own/bin/cropkit course my-course --lang zh_TW
cd my-course
for notebook in [0-9]*.ipynb; do
    echo "$notebook"
    "$offline" ../own/bin/jupyter execute --timeout=900 --kernel_name=python3 "$notebook" >../log 2>&1 || { cat ../log; exit 1; }
done
[ "$(../own/bin/cropkit course . --update)" = "nothing is newer" ] # running them changed nothing of one's own
