#!/usr/bin/env bash
# Installs what the tests need into a virtual environment of its own, and runs them.
#   bash launch/test.sh [--lane=py311|newest|colab] [--torch] [--checkpoints=DIR] [arguments of pytest]
# py311 (default) runs all tests on Python 3.11; newest (Python 3.12 or later, newest JAX) and colab
# (Colab's package list, JAX 0.7.2) leave out the slow ones. --torch adds PyTorch, without which the
# comparisons with it are skipped. --checkpoints=DIR runs no tests: it writes the lane's checkpoint to
# DIR and opens those that other lanes have written there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/python.sh

lane=py311 torch="" checkpoints="" arguments=()
for argument in "$@"; do
  case $argument in
    --lane=*) lane=${argument#*=} ;;
    --torch) torch="torch==2.13.0" ;;
    --checkpoints=*) checkpoints=${argument#*=} ;;
    *) arguments+=("$argument") ;;
  esac
done
case $lane in
  py311) python=$(find_python 3.11) ;;
  newest) python=$(find_python 3.13 3.12 3.14) arguments=(-m "not slow" "${arguments[@]}") ;;
  colab) python=$(find_python 3.13 3.12) arguments=(-m "not slow" "${arguments[@]}") ;;
  *) echo "error: --lane=$lane: must be py311, newest or colab" >&2; exit 2 ;;
esac

venv=.venv-test-$lane${torch:+-torch}
make_venv "$venv" "$python" "-r requirements.txt -r tests/requirements.txt $torch" "launch/constraints/$lane.txt"
echo "lane $lane: $("$python" --version), $("$venv/bin/python" -m pip freeze | grep -E '^(jax|flax|optax|orbax-checkpoint|grain|torch)==' | tr '\n' ' ')"
export JAX_PLATFORMS=cpu
if [ -n "$checkpoints" ]; then
  exec "$venv/bin/python" -m tests.lanes "$checkpoints" "$lane"
fi
exec "$venv/bin/python" -m pytest -q --durations=15 "${arguments[@]}"
