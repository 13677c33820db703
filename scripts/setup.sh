#!/usr/bin/env bash
# Set this machine up: Debian packages, .venv with every extra, and a renderer that works.
# Quick when done: .venv/.setup-done holds this folder and the checksum of pyproject.toml and this file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
done_file=.venv/.setup-done
gl_file=.venv/mujoco_gl

say() { echo "setup: $*" >&2; }

# --- Debian packages -------------------------------------------------------------------------
missing_packages() {
    local libraries
    libraries=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null || true)
    has_library() { [[ $libraries == *"$1"* ]]; }
    has_library libEGL.so.1 || echo libegl1
    has_library libGL.so.1 || echo libgl1
    compgen -G "/usr/lib/*/dri/swrast_dri.so" >/dev/null || echo libgl1-mesa-dri
    has_library libOSMesa.so || echo libosmesa6
    command -v ffmpeg >/dev/null || echo ffmpeg
    command -v g++ >/dev/null || echo g++
    # the tests of the page; `torchrl_vip.demo` itself works in any browser
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || echo chromium
    # torch.compile's kernels include Python.h.
    python3 -c "import os, sysconfig; os.stat(sysconfig.get_path('include') + '/Python.h')" \
        2>/dev/null || echo python3-dev
    [[ -x .venv/bin/python ]] || python3 -c "import venv, ensurepip" 2>/dev/null || echo python3-venv
}

install_packages() {
    local missing as_root=()
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    if [[ $(uname) != Linux ]] || ! command -v apt-get >/dev/null; then
        say "no apt-get here; install with your package manager what these Debian packages hold: ${missing[*]}"
        return 0
    fi
    if ((EUID != 0)); then
        if ! sudo -n true 2>/dev/null; then
            say "these packages are missing and need root. Run this, then make again:"
            say "    sudo apt-get update && sudo apt-get install -y ${missing[*]}"
            return 0
        fi
        as_root=(sudo -n)
    fi
    say "installing Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq || say "apt-get update failed; trying with the lists at hand"
    # One at a time: a package this release does not have (libosmesa6 in Debian 13) stops no other.
    for package in "${missing[@]}"; do
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends "$package" >/dev/null ||
            say "could not install $package; going on without it"
    done
}

# --- Python ----------------------------------------------------------------------------------
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    say "no Python 3.10 or newer found; name one: make setup PYTHON=/path/to/python3"
    return 1
}

install_python() {
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        if ! "$python" -m venv .venv; then
            say "venv failed. On Debian: sudo apt-get install -y python3-venv; then make again"
            return 1
        fi
        .venv/bin/python -m pip install -q --upgrade pip || say "pip stays as it is"
    fi
    local options=() free_gb
    [[ -t 1 ]] || options=(-qq) # errors only
    free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1000000))
    if [[ ! -f .venv/.setup-done ]] && ((free_gb < 9)); then
        say "$free_gb GB are free here, and the first set-up needs about 9 (6 to stay, 3 for downloads)."
        say "It may end with 'No space left on device': make room, then make again."
    fi
    ((free_gb >= 20)) || options+=(--no-cache-dir) # of the downloads, which would stay
    say "installing torchrl_vip and every extra (about 6 GB and some minutes the first time)"
    .venv/bin/python -m pip install "${options[@]}" --disable-pip-version-check -e ".[all]"
}

# --- Renderer --------------------------------------------------------------------------------
renders() { # renders BACKEND: does a tiny MuJoCo scene come out with light in it?
    MUJOCO_GL=$1 timeout 120 .venv/bin/python - >/dev/null 2>&1 <<'PYTHON'
import mujoco

scene = "<mujoco><worldbody><light pos='0 0 2'/><geom size='.3' rgba='1 0 0 1'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0
PYTHON
}

pick_renderer() {
    local backend
    for backend in egl osmesa glfw; do
        if renders "$backend"; then
            echo "$backend" >"$gl_file"
            say "MuJoCo renders with MUJOCO_GL=$backend"
            return 0
        fi
    done
    say "MuJoCo renders with none of egl, osmesa, glfw. On Debian:"
    say "    sudo apt-get install -y libegl1 libgl1 libgl1-mesa-dri libosmesa6"
    say "then make again. Going on: what does not render works."
}

stamp="$root $(cat pyproject.toml scripts/setup.sh | cksum)"
if [[ ! -f $done_file || $(<"$done_file") != "$stamp" ]]; then
    install_packages
    install_python
    rm -f "$gl_file"
    echo "$stamp" >"$done_file"
fi
[[ -s $gl_file ]] || pick_renderer
