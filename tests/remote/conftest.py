"""Nothing is fetched from the hub."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
