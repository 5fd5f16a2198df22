#!/usr/bin/env bash
# From a fresh machine to a trained As-ViT: a virtual environment, the CPU stack, handwritten digits.
#   bash launch/quickstart.sh [flags of the training command]
# Once more, after an interruption: the training goes on where its last checkpoint ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/python.sh

python=$(find_python 3.11 3.12 3.13 3.14)
case $("$python" --version) in
  "Python 3.11."*) constraints=launch/constraints/py311.txt ;;
  *) constraints=launch/constraints/newest.txt ;;
esac
make_venv .venv "$python" requirements.txt "$constraints"
# What was installed is for the CPU, also on a machine with an accelerator.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec .venv/bin/python -m vit_efficient.main --config=configs/asvit.py:digits "$@"
