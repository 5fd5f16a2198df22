#!/usr/bin/env bash
# On a worker of a TPU slice: a Python, the stack and the TPU's driver, into .venv of this checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/python.sh

versions=(3.11 3.12 3.13)
if ! python=$(find_python "${versions[@]}" 2> /dev/null); then          # Ubuntu 22.04 comes with 3.10
  sudo apt-get update -q
  sudo apt-get install -qy python3.11 python3.11-venv
  python=$(find_python "${versions[@]}")
fi
case $("$python" --version) in
  "Python 3.11."*) constraints=launch/constraints/py311.txt ;;
  *) constraints=launch/constraints/newest.txt ;;
esac
make_venv .venv "$python" requirements.txt "jax[tpu]" "$constraints"
