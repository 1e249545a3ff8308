"""What holds for every test: nothing is fetched, and nothing is written outside of the test's own folders."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models gain nothing from threads, and threads of several processes on few cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ["SIGHTLINE_CACHE"] = tempfile.mkdtemp(prefix="sightline-tests-")
atexit.register(shutil.rmtree, os.environ["SIGHTLINE_CACHE"], ignore_errors=True)
