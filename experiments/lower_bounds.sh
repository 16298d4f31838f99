#!/usr/bin/env bash
# Runs the tests with the oldest packages that requirements.txt admits, in a virtual environment of its own.
#     experiments/lower_bounds.sh [PYTHON]      such as python3.10, the oldest that is supported
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"${1:-python3.10}" -m venv "$environment"
# torch 2.4 is 2.4.1, and torchvision 0.19 is 0.19.1: the last of each minor release has its mended faults
sed 's/>=\(.*\)/~=\1.0/' requirements.txt >"$environment/oldest.txt"
"$environment/bin/pip" install -q -r "$environment/oldest.txt" -r requirements-dev.txt
"$environment/bin/python" -m pytest -q
