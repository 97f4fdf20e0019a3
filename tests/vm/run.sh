#!/bin/bash
# `make vm-test`: builds the Debian package and lets it prove itself on a throwaway machine with a real systemd.
#
#   VM_RUN    a program `VM_RUN [--copy HOSTPATH:GUESTPATH]... SCRIPT` that runs SCRIPT as root on such a machine,
#             Debian 12 with bubblewrap, and ends with the script's status
#   PYTHON    the interpreter that builds; the package needs the guest's minor version, 3.11 on Debian 12
#   DEB       a package that is there already, in place of building one
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${VM_RUN:?names the program that runs a script on a virtual machine}" "${PYTHON:=python3}" "${DEB:=}"
if ! command -v "$VM_RUN" >/dev/null; then
    echo "there is no $VM_RUN: set VM_RUN to a program that runs a script on a Debian 12 machine" >&2
    exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "$DEB" ]; then
    if [ "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != 3.11 ]; then
        echo "$PYTHON is not Python 3.11, which Debian 12 has: set PYTHON, or DEB to a package built with it" >&2
        exit 2
    fi
    DEB=$("$PYTHON" packaging/deb/build.py --output "$work")
fi
"$VM_RUN" --timeout 3600 --copy "$DEB:/opt/otto-daemon.deb" tests/vm/service.sh
