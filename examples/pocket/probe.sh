#!/usr/bin/env bash
# The covariance probe on the pocket model, offline on the CPU: does power sampling raise what goes with self-reward,
# and only that? And what does a decoding temperature do? Seven evaluations by stock lm-eval, then one command.
#   bash examples/pocket/probe.sh FOLDER [options of lm_eval]        for instance: probe.sh runs/probe --limit 100
# Evaluations that FOLDER holds already are not repeated; figures and tables go to FOLDER/probe.
set -euo pipefail
pocket=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?name a folder for the runs, for instance runs/probe}
shift
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

evaluate() { # name, options
  name=$1 options=$2
  shift 2
  compgen -G "$folder/$name/*/results_*.json" > /dev/null && return
  echo "== $name =="
  lm_eval --model power-hf --model_args "pretrained=$pocket/model,dtype=float32,seed=0,completions=$folder/store/$name,$options" \
    --tasks pocket_sums --device cpu --batch_size 64 --gen_kwargs n=8 --output_path "$folder/$name" --log_samples "$@"
}

temperatures=(1.5 1.25 0.75 0.5 0.25)
evaluate standard method=standard "$@"
evaluate power method=power,alpha=4,mcmc_steps=10,block_size=4 "$@"
for temperature in "${temperatures[@]}"; do
  evaluate "temperature-$temperature" "method=temperature,proposal_temperature=$temperature" "$@"
done

lm-power probe --base "$folder/store/standard" --power "$folder/store/power" "$folder/store/temperature-0.25" \
  --temperatures "$folder/standard" "${temperatures[@]/#/$folder/temperature-}" --output "$folder/probe"
