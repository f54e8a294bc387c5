"""`lm-power doctor`: what works on this machine, what does not, why, and what to set."""
