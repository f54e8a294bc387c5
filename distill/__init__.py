"""Trainer for power self-distillation; it arrives with that issue. Installed as `lm_power.distill`."""
