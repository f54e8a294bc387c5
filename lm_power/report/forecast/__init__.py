"""Which alpha would help, forecast from plain completions: importance sampling, checked by effective sample sizes."""
