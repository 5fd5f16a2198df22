#!/usr/bin/env bash
# Installs what the tests need into a virtual environment of their own, and runs them on every core, a
# test file on one (-n 0: one file after the other); compiled programs stay in .pytest_cache/xla.
#   bash launch/test.sh [--lane=py311|newest|colab] [--torch] [--checkpoints=DIR] [arguments of pytest]
# py311 (default) runs all tests on Python 3.11; newest (Python 3.12 or later, newest JAX) and colab
# (Google Colab's package list, JAX 0.7.2) leave out the slow ones. --torch installs PyTorch, without
# which the comparisons with it are skipped. --checkpoints=DIR runs no tests: it writes this lane's
# checkpoint to DIR and opens those that other lanes have written there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/python.sh

lane=py311 folder="" torch="" packages=(requirements.txt tests/requirements.txt) marks="" arguments=()
for argument in "$@"; do
  case $argument in
    --lane=*) lane=${argument#*=} ;;
    --torch) torch=-torch packages+=(torch==2.13.0) ;;
    --checkpoints=*) folder=${argument#*=} ;;
    *) arguments+=("$argument") ;;
  esac
done
case $lane in
  py311) versions=(3.11) ;;
  newest | colab) versions=(3.13 3.12) marks="not slow" ;;
  *) echo "error: --lane=$lane: must be py311, newest or colab" >&2; exit 2 ;;
esac

python=$(find_python "${versions[@]}")
venv=.venv-test-$lane$torch
make_venv "$venv" "$python" "${packages[@]}" "launch/constraints/$lane.txt"
echo "lane $lane: $("$python" --version)$("$venv/bin/python" -m pip freeze --disable-pip-version-check |
  sed -nE 's/^(jax|flax|optax|orbax-checkpoint|grain|numpy|torch)==/, \1 /p' | tr -d '\n')"
export JAX_PLATFORMS=cpu
# Freed memory stays with the process: for weights of hundreds of megabytes, made and dropped test by
# test, the kernel else needs half as long as the tests themselves.
keep=glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592
export GLIBC_TUNABLES=${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}$keep
if [ -n "$folder" ]; then
  exec "$venv/bin/python" -m tests.lanes "$folder" "$lane"
fi
exec "$venv/bin/python" -m pytest -q -rs --durations=15 -m "$marks" \
  -n auto --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"}
