#!/usr/bin/env bash
# Evaluate the pocket model by the three ways of sampling, offline on the CPU: one lm-eval table each.
# Options of lm_eval may follow, for instance: bash examples/pocket/run.sh --limit 50
set -euo pipefail
pocket=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# A model this small gains nothing from a second thread, and on a busy machine the threads wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

for method in standard temperature power; do
  options=""
  case $method in
    temperature) options=",proposal_temperature=0.25" ;;
    power) options=",alpha=4,mcmc_steps=10,block_size=4" ;;
  esac
  echo "== $method =="
  lm_eval --model power-hf --model_args "pretrained=$pocket/model,dtype=float32,method=$method,seed=0$options" \
    --tasks pocket_sums --device cpu --batch_size 64 "$@"
done
