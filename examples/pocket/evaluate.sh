# Sourced by probe.sh and forecast.sh: `evaluate`, one evaluation of the pocket model by stock lm-eval, offline on the CPU.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# evaluate FOLDER NAME N MODEL_ARGS [options of lm_eval]
# N completions per problem; results and samples go to FOLDER/NAME, the store to FOLDER/store/NAME.
# An evaluation that FOLDER already holds is not repeated.
evaluate() {
  local folder=$1 name=$2 n=$3 options=$4
  shift 4
  compgen -G "$folder/$name/*/results_*.json" > /dev/null && return
  echo "== $name =="
  lm_eval --model power-hf --model_args "pretrained=$pocket/model,dtype=float32,seed=0,completions=$folder/store/$name,$options" \
    --tasks pocket_sums --device cpu --batch_size 64 --gen_kwargs "n=$n" --output_path "$folder/$name" --log_samples "$@"
}
