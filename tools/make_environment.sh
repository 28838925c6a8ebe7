#!/bin/sh
# Makes .venv with all that the demo and the tests need, from requirements.lock: with uv if it is there or can be
# installed, else with pip. FAISS=gpu takes faiss-gpu and this machine's choice of torch instead of the locked set;
# without FAISS an environment stays what it is.
set -eu
cd "$(dirname "$0")/.."
made=$(cut -d ' ' -f 1 .venv/.ready 2>/dev/null || true)
faiss=${FAISS:-${made:-cpu}}

wanted="$faiss $(cksum <pyproject.toml) $(cksum <requirements.lock)"
if [ -x .venv/bin/python ] && [ "$(cat .venv/.ready 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

python=
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$("$candidate" -c 'import sys; print(sys.executable)')
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer found: install one, or name it with PYTHON=..." >&2
    exit 1
fi

# half made, made for the other FAISS (the two exclude each other), or without anything to install with: anew
if [ "$made" != "$faiss" ] || ! { command -v uv || .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
    rm -rf .venv
fi
echo "making .venv with $("$python" --version) (several GB the first time)"
if [ ! -x .venv/bin/python ] && ! { command -v uv >/dev/null && uv venv -q --seed --python "$python" .venv; } &&
    ! { rm -rf .venv && "$python" -m venv .venv; }; then
    rm -rf .venv
    echo "error: $python cannot make an environment: install uv, or Debian's python3-venv" >&2
    exit 1
fi

if command -v uv >/dev/null; then
    uv=uv
elif .venv/bin/python -m pip install -q --disable-pip-version-check uv 2>/dev/null; then
    uv=.venv/bin/uv
else
    uv=
fi
install() {
    if [ -n "$uv" ] && "$uv" pip install -q --compile-bytecode --python .venv/bin/python "$@"; then
        return
    fi
    echo "installing with pip"
    .venv/bin/python -m pip install -q --disable-pip-version-check "$@"
}

if [ "$faiss" = cpu ]; then
    install -r requirements.lock
    install --no-deps -e .
else
    install -e ".[$faiss,sources,dev,bench,timm,export,remote,service,report,tensorboard,maps,docs]"
fi
echo "$wanted" >.venv/.ready
echo "environment ready: .venv"
