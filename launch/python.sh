# shellcheck shell=bash
# Sourced by the scripts beside it: finds a Python, makes a virtual environment.

# Large arrays in large pages, where the C library can (glibc; ignored elsewhere): on a CPU a small
# model's step otherwise spends a quarter of its time on page faults.
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}

# find_python VERSION...: prints the first interpreter of one of these versions ("3.11"), or fails.
find_python() {
  local version candidate
  for version in "$@"; do
    for candidate in "python$version" \
        "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python python3 python; do
      if "$candidate" -c "import sys
sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
        command -v "$candidate"
        return
      fi
    done
  done
  echo "error: no Python of version $* was found: install one, or put its folder into PATH" >&2
  return 1
}

# make_venv FOLDER PYTHON FILE...: makes the virtual environment FOLDER, unless it was made by the
# same Python from the same lists; FILEs are requirements, *constraints/* constraints, others names of
# packages.
make_venv() {
  local folder=$1 python=$2 argument stamp arguments=()
  shift 2
  for argument in "$@"; do
    case $argument in
      *constraints/*) arguments+=(--constraint "$argument") ;;
      *.txt) arguments+=(--requirement "$argument") ;;
      *) arguments+=("$argument") ;;
    esac
  done
  stamp=$("$python" --version && for argument in "$@"; do
    if [ -f "$argument" ]; then cat "$argument"; else echo "$argument"; fi
  done)
  if [ "$(cat "$folder/installed.txt" 2>/dev/null)" = "$stamp" ] \
      && "$folder/bin/python" -c "" 2>/dev/null; then
    return
  fi
  echo "installing into $folder with $("$python" --version): about 1 GB, once" >&2
  rm -rf "$folder"
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${arguments[@]}"
  printf '%s\n' "$stamp" > "$folder/installed.txt"
}
