"""The lm-eval models and metrics: the only room, with `plugin` and `tasks`, that imports lm_eval."""
