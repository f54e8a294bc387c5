#!/usr/bin/env bash
# Table 1 of Tomihari & Sato (2026) for the pocket model, offline on the CPU: pay for power sampling once, on other problems;
# learn its completions; then compare untrained, base and distilled model by three ways of sampling. About seven minutes.
#   bash examples/pocket/distill.sh [FOLDER] [SEED] [TEACHER]      (default: pocket-distillation 0 base)
# TEACHER RandW, a model of random weights, is the negative control: it has nothing to teach.
# Cut it off and start it again: what is done is not done twice.
set -euo pipefail
pocket=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out="${1:-pocket-distillation}" seed="${2:-0}" teacher="${3:-base}"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$out"

weights() { # model arguments
  case $1 in
    RandW) echo "randomize_weights=True," ;;
    base) ;;
    distilled) echo "peft=$out/adapter," ;;
    *) echo "TEACHER must be base or RandW, not $1" >&2 && return 1 ;;
  esac
}

method() { # model arguments
  case $1 in
    standard) echo "method=standard" ;;
    temperature) echo "method=temperature,proposal_temperature=0.25" ;;
    power) echo "method=power,alpha=4,mcmc_steps=10,block_size=4" ;;
  esac
}

sample() { # sample NAME MODEL METHOD TASK [options of lm_eval]: results, samples and store in $out/NAME
  echo "== $1 =="
  if compgen -G "$out/$1/*/results_*.json" > /dev/null; then echo "done before" && return; fi
  lm_eval --model power-hf --tasks "$4" --device cpu --batch_size 64 --output_path "$out/$1" --log_samples "${@:5}" \
    --model_args "pretrained=$pocket/model,dtype=float32,$(weights "$2")$(method "$3"),seed=$seed,completions=$out/$1/store"
}

sample teacher "$teacher" power pocket_sums_train

echo "== distillation =="
# A tiny model takes a larger learning rate than the default, and eight completions at once instead of one after another.
# It is stored in float32, and so its teacher was evaluated.
again=""
if [[ -d "$out/adapter" ]]; then again=yes; fi
python -m lm_power.distill --model "$pocket/model" --data "$out/teacher/store" --output "$out/adapter" --seed "$seed" \
  --exclude_prompts_of "$pocket/../../tasks/pocket_sums/problems.jsonl" \
  --precision fp32 --learning_rate 1e-3 --batch_size 8 --gradient_accumulation 1 --no-gradient_checkpointing \
  ${again:+--resume}

runs=()
for model in RandW base distilled; do
  for method in standard temperature power; do
    sample "$model-$method" "$model" "$method" pocket_sums --limit 100 --gen_kwargs n=8
    runs+=("$model, $method=$out/$model-$method")
  done
done
lm-power report "${runs[@]}" --output "$out/report"
