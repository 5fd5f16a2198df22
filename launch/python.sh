# Sourced by the scripts beside it: finds a Python, makes a virtual environment.

# find_python VERSION...: prints the first interpreter of one of these versions ("3.11"), or fails.
find_python() {
  local version candidate
  for version in "$@"; do
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python python3 python; do
      if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
        command -v "$candidate"
        return
      fi
    done
  done
  echo "error: no Python $(echo "$@" | sed 's/ / or /g') found; install one, or put it into PATH" >&2
  return 1
}

# make_venv FOLDER PYTHON LIST CONSTRAINTS...: installs LIST ("-r file ...") unless FOLDER has it already.
make_venv() {
  local folder=$1 python=$2 list=$3 constraints=$4 stamp
  stamp=$("$python" --version; cat $(echo "$list" | sed 's/-r //g') "$constraints" 2>/dev/null; echo "$list")
  if [ "$(cat "$folder/installed" 2>/dev/null)" != "$stamp" ]; then
    echo "installing into $folder ($("$python" --version))"
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check $list ${constraints:+-c "$constraints"}
    echo "$stamp" > "$folder/installed"
  fi
}
