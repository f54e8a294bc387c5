"""lm-eval task configs, one folder a task; installed as `lm_power.tasks`."""
