#!/usr/bin/env bash
# Every check of the project: style, types, tests and doctests. No network, no GPU.
#   bash tests/run.sh [--nightly] [arguments for pytest]        --nightly: the slow tests too
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

marks="not gpu and not slow"
if [[ "${1:-}" == "--nightly" ]]; then
    shift
    marks="not gpu"
fi

python -m ruff check .
python -m ruff format --check .
python -m mypy
python -m pytest -m "$marks" "$@"
