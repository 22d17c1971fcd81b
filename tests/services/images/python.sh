#!/usr/bin/env bash
# Prints the root file system of the image python: this machine's Python 3.11 without pip, and busybox.
set -euo pipefail
cd "$(dirname "$0")"

find_python() { ../../../tools/pythons.sh all 2>/dev/null | sed -n 's/^3\.11 //p'; }
python=$(find_python)
if [ -z "$python" ]; then
    ../../../tools/apt.sh python3.11
    python=$(find_python)
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
. ./root.sh

library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
program=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
mkdir -p "$root/usr/local/bin" "$root/usr/local/lib/python3.11"
cp "$program" "$root/usr/local/bin/python3.11"
ln -s python3.11 "$root/usr/local/bin/python3"
ln -s python3.11 "$root/usr/local/bin/python"
tar -C "$library" --exclude=__pycache__ --exclude=./test --exclude=tests --exclude=./idlelib --exclude=./tkinter \
    --exclude=./turtledemo --exclude=./ensurepip --exclude=./site-packages --exclude='./config-3.11*' -c . |
    tar -C "$root/usr/local/lib/python3.11" -x
# The shared libraries of the interpreter and of its modules, and the loader, under the names that they are asked for.
for file in "$program" "$library"/lib-dynload/*.so; do ldd "$file" || true; done |
    grep -oE '/[^ ]+\.so[^ ]*' | sort -u | while read -r path; do
    mkdir -p "$root$(dirname "$path")"
    cp -L "$path" "$root$path"
done
tar -C "$root" --numeric-owner --owner=0 --group=0 -c .
