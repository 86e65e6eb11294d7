"""Deltas made by hand, and a bundle around them."""

import torch

from tuner.editors.look_up.memory import LookUpDelta
from tuner.testing.bundles import bundle_of as bundle_of


def look_up_delta(target: int = 3, end: int = 0, width: int = 32) -> LookUpDelta:
    """Return a look-up cache of one prompt."""
    return LookUpDelta(1.0, torch.ones(1, width), ((target,),), 3.0, 10.0, end)
