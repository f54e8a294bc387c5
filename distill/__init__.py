"""Power self-distillation: fine-tune a model on its own power samples. `python -m lm_power.distill --help`."""
