"""What runs of lm-eval and their stores show: tables, figures, one page."""
