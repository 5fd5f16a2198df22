#!/usr/bin/env bash
# From a fresh machine to a trained As-ViT: a virtual environment, the CPU stack, handwritten digits.
#   bash launch/quickstart.sh [flags of the training command]
# Run it again after an interruption: the training goes on where its last checkpoint ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/python.sh

python=$(find_python 3.11 3.12 3.13 3.14)
case $("$python" --version) in
  *" 3.11."*) constraints=launch/constraints/py311.txt ;;
  *) constraints=launch/constraints/newest.txt ;;
esac
make_venv .venv "$python" "-r requirements.txt" "$constraints"
JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} .venv/bin/python -m vit_efficient.main --config=configs/asvit.py:digits "$@"
