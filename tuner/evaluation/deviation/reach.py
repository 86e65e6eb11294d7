"""How small a budget can be decided on so much general text."""

import math

from tuner.evaluation.statistics.confidence import sequence_radius

# Spread per block of 512 tokens of a LoRA edit of a pretrained language model of 135 million
# parameters (SmolLM2), as a share of the loss: as it is, and without its linear part.
_PLAIN, _CONTROLLED, _MEASURED_LENGTH = 2.8e-4, 5.0e-6, 512
# Edits are aimed at seven tenths of their budget. The three that are left must hold the radius of
# the confidence sequence and the luck of the estimate, which is half a radius in 19 of 20 cases.
_LEFT = 0.3 / 1.5


def decided_budget(
    tokens: int, gradient_tokens: int, block_length: int, *, confidence: float = 0.95
) -> float:
    """Return the least ε for which an edit at 0.7 ε would mostly be certified on so many tokens.

    A rule of thumb: it takes the spread that was measured on one model and one kind of edit, and
    edits differ. The linear part is as sure as the text of the reading and of the gradient
    together is long.
    """
    scale = math.sqrt(_MEASURED_LENGTH / block_length)
    read = max(1, tokens // block_length)
    known = read + gradient_tokens // block_length
    radius = _PLAIN * sequence_radius(known, confidence, known)
    if gradient_tokens:
        radius = math.hypot(_CONTROLLED * sequence_radius(read, confidence, read), radius)
    return scale * radius / _LEFT
