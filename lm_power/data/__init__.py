"""The problems that tasks ask: data sets of the hub, or files of this machine, read and checked; no lm-eval in it."""
