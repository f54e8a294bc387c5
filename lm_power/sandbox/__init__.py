"""Runs programs that a model wrote, each shut off from the machine, and says whether they passed their tests."""
