"""The memory bank: one unit-length feature a sample, its rows partitioned over the ranks, outside the DDP module."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from andscale.distributed import World

_BLOCK_ROWS = 65_536


def rows_of_rank(num_samples: int, rank: int, world_size: int) -> range:
    """The sample ids whose rows a rank holds: floor(N r/W) .. floor(N (r+1)/W) - 1."""
    return range(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)


def initial_rows(rows: range, feature_dim: int, seed: int) -> np.ndarray:
    """The memory before the first round: uniform in +-sqrt(3/D) as published, then unit length.

    A row depends on (seed, row) alone, so every partition starts from the same memory.

    Args:
        rows: which rows.
        feature_dim: D.
        seed: the run's seed.

    Returns:
        (len(rows), D) float32.
    """
    bound = np.sqrt(3 / feature_dim)
    parts = [np.empty((0, feature_dim), np.float32)]
    for block in range(rows.start // _BLOCK_ROWS, -(-rows.stop // _BLOCK_ROWS)):
        generator = np.random.default_rng([seed, block, 0x6D656D])
        values = generator.uniform(-bound, bound, (_BLOCK_ROWS, feature_dim)).astype(np.float32)
        first = block * _BLOCK_ROWS
        parts.append(values[max(rows.start - first, 0) : rows.stop - first])
    joined = np.concatenate(parts)
    joined /= np.linalg.norm(joined, axis=1, keepdims=True)
    return joined


class MemoryBank:
    """One rank's rows of the memory.

    Attributes:
        rows: the sample ids of this rank, consecutive.
        values: (len(rows), D) float32, unit length, on the training device.
    """

    def __init__(self, world: World, num_samples: int, values: Tensor):
        self.rows = rows_of_rank(num_samples, world.rank, world.world_size)
        self.num_samples = num_samples
        self.values = values
        if len(values) != len(self.rows):
            raise ValueError(f"{len(values)} rows given, this rank holds {len(self.rows)}")

    def locate(self, sample_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of samples in ``values``, and whether they are here at all.

        Args:
            sample_ids: (...,) int64.

        Returns:
            (...,) int64, 0 where the sample is another rank's; (...,) bool.
        """
        here = (sample_ids >= self.rows.start) & (sample_ids < self.rows.stop)
        return torch.where(here, sample_ids - self.rows.start, 0), here

    @torch.no_grad()
    def update(self, sample_ids: Tensor, features: Tensor, momentum: float, admitted: Tensor | None = None) -> None:
        """Move the rows of a batch towards its features (eq 8).

            m_i <- (1 - eta) m_i + eta x_i,  then back to unit length

        Args:
            sample_ids: (B,) int64, the global batch, no id twice; rows of other ranks are left alone.
            features: (B, D) float32, unit length.
            momentum: eta in (0, 1].
            admitted: () bool on the device, false where nothing may change; None: true.
        """
        if not len(self.rows):
            return
        positions, here = self.locate(sample_ids)
        kept = self.values[positions]
        moved = functional.normalize(torch.lerp(kept, features, momentum), dim=1)
        written = torch.where((here if admitted is None else here & admitted)[:, None], moved, kept)
        # samples of other ranks write what row 0 was; row 0 is written last, as itself: no list of who is here, and no
        # number to index with, for which the host would wait
        first = here & (positions == 0)
        row = torch.where(first.any(), written.index_select(0, first.int().argmax()[None])[0], self.values[0])
        self.values[positions] = written
        self.values[0] = row
