"""Features of the training split as the network is now, with the evaluation transform."""

import torch
from torch import Tensor

from andscale.data.reader import SplitReader
from andscale.training.embedding import EmbeddingNetwork


@torch.inference_mode()
def evaluation_features(network: EmbeddingNetwork, reader: SplitReader, rows: range, batch_size: int) -> Tensor:
    """Embed some samples; the network is left in evaluation mode.

    Args:
        network: on the reader's device.
        reader: the training split.
        rows: consecutive sample ids.
        batch_size: images at a time.

    Returns:
        (len(rows), D) float32, unit length, on the device.
    """
    network.eval()
    parts = [
        network(images.contiguous(memory_format=torch.channels_last)) for images in reader.in_order(batch_size, rows)
    ]
    return torch.cat(parts)
