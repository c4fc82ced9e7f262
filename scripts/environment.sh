# Sourced by the other scripts: makes the virtual environment .venv once and installs the package with EXTRAS into it.
# PYTHON chooses the interpreter; PIP_ARGS is passed on to pip.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

set_up() {
    local extras=$1 stamp
    stamp=$root/.venv/installed-$extras-$(cksum <"$root/pyproject.toml" | tr ' ' '-')
    [ -e "$stamp" ] && return
    local base=${PYTHON:-python3}
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $base is $("$base" --version 2>&1), but Python 3.11 or later is needed; set PYTHON" >&2
        exit 1
    }
    [ -x "$python" ] || "$base" -m venv "$root/.venv"
    echo "installing into $root/.venv (PyTorch is large: a minute or more the first time)"
    # Together, so that pip picks a pair that fits.
    "$python" -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} torch torchvision
    "$python" -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} --editable "$root[$extras]"
    touch "$stamp"
}
