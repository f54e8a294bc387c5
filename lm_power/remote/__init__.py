"""Power sampling on engines that are not ours: servers of completions that list the likeliest tokens."""

from __future__ import annotations
