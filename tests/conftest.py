"""What holds for every test: nothing is fetched."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models gain nothing from threads, and threads of several processes on few cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
