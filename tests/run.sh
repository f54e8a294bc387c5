#!/usr/bin/env bash
# Every check of the project: style, types, tests and doctests. No network, no GPU.
#   bash tests/run.sh [--nightly | --gpu | --vllm] [arguments for pytest]
#                                                                       --nightly: the slow tests too
#                                                                       --gpu: only those that need a CUDA device
#                                                                       --vllm: only those that need vLLM (CONTRIBUTING.md)
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

marks="not gpu and not slow and not vllm"
if [[ "${1:-}" == "--nightly" ]]; then
    shift
    marks="not gpu and not vllm"
elif [[ "${1:-}" == "--gpu" ]]; then
    shift
    exec python -m pytest -m "gpu" "$@"
elif [[ "${1:-}" == "--vllm" ]]; then
    shift
    # In one process; on a CPU, with a small cache and one thread, which waits for no other.
    export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
    export VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
    exec python -m pytest -n 0 -m "vllm" tests/remote "$@"
fi

python -m ruff check .
python -m ruff format --check .
# distill/ is installed as lm_power.distill; mypy has to see it there.
tree="$(mktemp -d)"
trap 'rm -rf "$tree"' EXIT
cp -r lm_power pyproject.toml "$tree" && cp -r distill "$tree/lm_power/distill"
cache="$PWD/.mypy_cache" && (cd "$tree" && python -m mypy --cache-dir "$cache")
# One process a core and one thread a process: threads that spin for the same core are many times slower.
OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile -m "$marks" "$@"
