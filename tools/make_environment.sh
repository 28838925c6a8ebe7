#!/bin/sh
# Makes .venv with all that the demo and the tests need, from requirements.lock: with uv if it is there or can be
# installed, else with pip. FAISS=gpu takes faiss-gpu, which is built for CUDA 12, and the newest torch for that instead
# of the locked set; FAISS=cuvs takes faiss-gpu-cuvs and the package index's own torch, both for CUDA 13. For FAISS=gpu,
# UV_TORCH_BACKEND=cu126 and the like name the torch, UV_TORCH_BACKEND=pypi takes the package index's own. Without these
# an environment stays what it is.
set -eu
cd "$(dirname "$0")/.."
made=$(cut -d ' ' -f 1 .venv/.ready 2>/dev/null || true)
faiss=${FAISS:-${made%%/*}}
faiss=${faiss:-cpu}
kind=$faiss
backend=pypi
if [ "$faiss" = gpu ]; then
    case $made in gpu/*) remembered=${made#gpu/} ;; *) remembered=cu126 ;; esac
    backend=${UV_TORCH_BACKEND:-$remembered}
    kind=gpu/$backend
    unset UV_TORCH_BACKEND
fi

wanted="$kind $(cksum <pyproject.toml) $(cksum <requirements.lock)"
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

# half made, made for another FAISS (they exclude each other) or torch, or without anything to install with: anew
if [ "$made" != "$kind" ] || ! { command -v uv || .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
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
uv_install() {
    "$uv" pip install -q --compile-bytecode --python .venv/bin/python "$@"
}
install() {
    if [ -n "$uv" ] && uv_install "$@"; then
        return
    fi
    echo "installing with pip"
    .venv/bin/python -m pip install -q --disable-pip-version-check "$@"
}

if [ "$faiss" = cpu ]; then
    install -r requirements.lock
    install --no-deps -e .
else
    everything=".[$faiss,sources,dev,bench,timm,export,remote,service,report,tensorboard,maps,docs]"
    if [ "$backend" = pypi ]; then
        install -e "$everything"
    elif [ -z "$uv" ] || ! uv_install --torch-backend "$backend" -e "$everything"; then
        # pip would take a torch for another CUDA than FAISS's
        echo "error: no torch for $backend could be installed with uv: name another with UV_TORCH_BACKEND=..., or" \
            "UV_TORCH_BACKEND=pypi for the package index's own; FAISS=cuvs takes FAISS and torch for CUDA 13" >&2
        exit 1
    fi
fi
echo "$wanted" >.venv/.ready
echo "environment ready: .venv"
