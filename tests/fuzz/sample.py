"""The photograph and the mask of which inputs are made."""

from __future__ import annotations

import numpy as np

from foveal.data.synthetic import shapes_sample

PHOTO, MASK = shapes_sample(np.random.default_rng(0), (40, 56))
