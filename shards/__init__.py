"""The contract between the rooms: samples, labels, tar shards, manifest, order, preprocessing."""

import os

# Read when torch loads GNU's OpenMP: how long a thread that waits for others spins before it sleeps
# (by default 300,000 turns, some ms). DenseNet121's step of 16 images of 64 pixels on 2 cores takes
# 0.45 s with nothing beside it, as by default (0.95 where threads sleep at once), and 1.0 to 2.2 s
# beside two busy processes, in the place of 8 to 18.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# Read when ONNX Runtime is loaded: by default it tells its maker of the machine and of errors, and
# keeps that in ~/.cache/Microsoft until there is a network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
