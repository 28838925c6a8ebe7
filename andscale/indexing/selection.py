"""The curriculum: which samples are anchors in a round."""

import numpy as np

from andscale.errors import UsageError


def num_anchors(num_samples: int, round_number: int, num_rounds: int) -> int:
    """floor(N r / R) (eq 6), in whole numbers.

    Raises:
        UsageError: the round is outside 0..R.
    """
    if not 0 <= round_number <= num_rounds:
        raise UsageError(
            f"round {round_number} is outside the curriculum: method.num_rounds = {num_rounds}, so rounds 0 to "
            f"{num_rounds}"
        )
    return num_samples * round_number // num_rounds


def select_anchors(entropies: np.ndarray, round_number: int, num_rounds: int) -> np.ndarray:
    """Mark the floor(N r / R) samples of lowest entropy (eq 6); equal entropies go by smaller sample id.

    Args:
        entropies: (N,) float32, nats.
        round_number: r in 0..R.
        num_rounds: R.

    Returns:
        (N,) bool.
    """
    count = num_anchors(len(entropies), round_number, num_rounds)
    is_anchor = np.zeros(len(entropies), bool)
    is_anchor[np.argsort(entropies, kind="stable")[:count]] = True
    return is_anchor
