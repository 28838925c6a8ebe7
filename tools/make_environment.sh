#!/bin/sh
# Makes .venv with all that the demo and the tests need, from requirements.lock: with uv if it is there or can be
# installed, else with pip. FAISS=gpu installs faiss-gpu and this machine's newest torch instead of the locked set.
set -eu
cd "$(dirname "$0")/.."
faiss=${FAISS:-cpu}

python=
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer found: install one, or name it with PYTHON=..." >&2
    exit 1
fi

wanted="$faiss $(cksum <pyproject.toml) $(cksum <requirements.lock)"
if [ -x .venv/bin/python ] && [ "$(cat .venv/.ready 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

echo "making .venv with $("$python" --version) (several GB the first time)"
if command -v uv >/dev/null 2>&1; then
    [ -x .venv/bin/python ] || uv venv -q --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
    install="uv pip install -q --python .venv/bin/python"
else
    if ! { [ -x .venv/bin/python ] || "$python" -m venv .venv; } || ! .venv/bin/python -m pip --version >/dev/null; then
        echo "error: $python cannot make an environment: install uv, or Debian's python3-venv" >&2
        exit 1
    fi
    if .venv/bin/python -m pip install -q --disable-pip-version-check uv 2>/dev/null; then
        install=".venv/bin/python -m uv pip install -q --python .venv/bin/python"
    else
        echo "uv cannot be installed: going on with pip"
        install=".venv/bin/python -m pip install -q --disable-pip-version-check"
    fi
fi

if [ "$faiss" = cpu ]; then
    $install -r requirements.lock
    $install --no-deps -e .
else
    $install -e ".[$faiss,sources,dev]"
fi
echo "$wanted" >.venv/.ready
echo "environment ready: .venv"
