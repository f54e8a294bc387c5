"""Estimators and tests on plain numbers: they know no run, no report and no lm-eval."""
