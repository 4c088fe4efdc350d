# Sourced by quickstart and run-tests from the repository root: installs what is missing (Debian packages, a Python venv).

PACKAGES="g++ cmake ninja-build pkg-config git ca-certificates libopenmpi-dev openmpi-bin libopenblas-dev libhdf5-dev
libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libfmt-dev libgtest-dev libbenchmark-dev libssl-dev
libboost-context-dev python3 python3-venv"

setup_packages() {
  local missing=() package
  for package in $PACKAGES; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ]; then
    printf 'Packages are missing. Please run\n\n  sudo apt-get install -y --no-install-recommends %s\n\nand start again.\n' \
      "${missing[*]}" >&2
    exit 1
  fi
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The venv holds the Python package of this checkout (editable) and what it needs; made again when pyproject.toml changes.
setup_python() {
  local stamp=.venv/.reprise-installed
  if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "making the Python environment in .venv"
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --editable .
    touch "$stamp"
  fi
}

# The tests beside torch, transformers, peft and megatron-core have a venv of their own; made again when what they need changes.
setup_torch() {
  local stamp=.venv-torch/.reprise-installed folder=tests/with_torch
  if [ ! -e "$stamp" ] || [ $folder/requirements.txt -nt "$stamp" ] || [ $folder/dependencies.py -nt "$stamp" ]; then
    echo "making the environment of the tests with torch in .venv-torch (4.5 GB; ./run-tests --quick does without)"
    python3 -m venv .venv-torch
    local install=".venv-torch/bin/pip install --quiet --disable-pip-version-check --no-compile" log=.venv-torch/pip.log
    # pip complains of what dependencies.py leaves out; the log is for when it fails.
    { $install --no-deps -r $folder/requirements.txt &&
      .venv-torch/bin/python $folder/dependencies.py >.venv-torch/dependencies.txt &&
      $install -r .venv-torch/dependencies.txt; } 2>$log || { cat $log >&2; exit 1; }
    touch "$stamp"
  fi
}

build() {
  cmake --preset cpu >build-cpu.log 2>&1 || { cat build-cpu.log >&2; exit 1; }
  rm -f build-cpu.log
  cmake --build --preset cpu "$@"
}

# Containers run as root and with fewer cores than ranks; mpirun wants to be told that both are meant.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none
