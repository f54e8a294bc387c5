#!/usr/bin/env bash
# The forecast on the pocket model, offline on the CPU: from 32 plain completions per problem, the accuracy that power
# sampling would have at each alpha; beside it what power sampling has, and what exact samples of p^alpha have (rejection).
#   bash examples/pocket/forecast.sh FOLDER [options of lm_eval]        for instance: forecast.sh runs/forecast --limit 50
# Evaluations that FOLDER holds already are not repeated; table, figure and JSON go to FOLDER/forecast.
set -euo pipefail
pocket=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?name a folder for the runs, for instance runs/forecast}
shift
source "$pocket/evaluate.sh"

evaluate "$folder" standard 32 method=standard "$@"
runs=("$folder/standard")
for alpha in 2 4; do
  evaluate "$folder" "power-$alpha" 4 "method=power,alpha=$alpha,mcmc_steps=10,block_size=4" "$@"
  evaluate "$folder" "rejection-$alpha" 4 "method=rejection,alpha=$alpha,max_tries=100000" "$@"
  runs+=("$folder/power-$alpha" "$folder/rejection-$alpha")
done

lm-power forecast "${runs[@]}" --output "$folder/forecast"
