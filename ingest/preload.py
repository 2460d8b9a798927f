"""What the fork server imports before it forks workers: every module that an image goes through.

One image goes all the way here, because imagehash and imagecodecs import at their first call what
they need: 0.24 s, which each worker would spend anew; so it would 0.12 s for ingest.engines.
"""

from typing import get_args

import cv2
import numpy as np

import ingest.engines  # noqa: F401
from ingest.encode import EncodeConfig, encode_image
from shards.codec import Encoding, encode


def _encode_once() -> None:
    cv2.setNumThreads(1)  # threads do not survive a fork
    image = encode(np.zeros((256, 256), np.uint8), "png")
    for encoding in get_args(Encoding):
        encode_image(image, EncodeConfig(encoding, None))


_encode_once()
