"""lm-eval's logs, of any model: `results_TIME.json` (`results`) and `samples_TASK_TIME.jsonl` (`samples`)."""
