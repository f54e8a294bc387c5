#!/usr/bin/env bash
# The covariance probe on the pocket model, offline on the CPU: does power sampling raise what goes with self-reward,
# and only that? And what does a decoding temperature do? Seven evaluations by stock lm-eval, then one command.
#   bash examples/pocket/probe.sh FOLDER [options of lm_eval]        for instance: probe.sh runs/probe --limit 100
# Evaluations that FOLDER holds already are not repeated; figures and tables go to FOLDER/probe.
set -euo pipefail
pocket=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?name a folder for the runs, for instance runs/probe}
shift
source "$pocket/evaluate.sh"

temperatures=(1.5 1.25 0.75 0.5 0.25)
evaluate "$folder" standard 8 method=standard "$@"
evaluate "$folder" power 8 method=power,alpha=4,mcmc_steps=10,block_size=4 "$@"
for temperature in "${temperatures[@]}"; do
  evaluate "$folder" "temperature-$temperature" 8 "method=temperature,proposal_temperature=$temperature" "$@"
done

lm-power probe --base "$folder/store/standard" --power "$folder/store/power" "$folder/store/temperature-0.25" \
  --temperatures "$folder/standard" "${temperatures[@]/#/$folder/temperature-}" --output "$folder/probe"
