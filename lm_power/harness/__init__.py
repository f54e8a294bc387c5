"""The lm-eval models and metrics. Only this room, `plugin` and `tasks` import lm_eval."""
