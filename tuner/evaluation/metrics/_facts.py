"""What the published figures of fact editing share."""

from tuner.editing.task import Split, SuccessCriterion


def is_of_facts(criterion: SuccessCriterion) -> bool:
    """Return whether the figures of fact editing are defined for a criterion."""
    return criterion is not SuccessCriterion.THRESHOLD


def has_neighbours(split: Split, criterion: SuccessCriterion) -> bool:
    """Return whether specificity is defined: there are neighbours."""
    return is_of_facts(criterion) and bool(split.neighbours)


def has_neighbour_tokens(split: Split, criterion: SuccessCriterion) -> bool:
    """Return whether locality is defined: single tokens of the neighbours are judged."""
    return criterion is SuccessCriterion.TOKENS and bool(split.neighbours)


def harmonic_mean(*shares: float) -> float:
    """Return the harmonic mean of shares; 0 where one of them is 0."""
    return len(shares) / sum(1 / share for share in shares) if all(shares) else 0.0
