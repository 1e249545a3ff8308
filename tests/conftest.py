"""What holds for every test: nothing is fetched."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
