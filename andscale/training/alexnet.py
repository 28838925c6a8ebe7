"""AlexNet with batch norm: the network that features without labels are compared with, layer by layer."""

from torch import Tensor, nn
from torch.nn import functional

from andscale.training.embedding import EmbeddingNetwork, Stages, initialise_convolutions

_WIDTH = 4096


class _Grid(nn.Module):
    """The last map as one row of ``size`` x ``size`` cells, averaged where it has another size."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C size size)."""
        # the backward pass of adaptive pooling is slow and without a fixed order of sums on GPUs
        if x.shape[2:] != (self.size, self.size):
            x = functional.adaptive_avg_pool2d(x, self.size)
        return x.flatten(1)


def build_alexnet(stem: str, feature_dim: int) -> EmbeddingNetwork:
    """AlexNet (Krizhevsky et al., 2012) with batch norm in place of response normalisation, and no groups.

        imagenet   224: conv 11x11/4, 96 -> 55, pool -> 27; conv 5x5, 256, pool -> 13; conv 3x3, 384; conv 3x3, 384;
                   conv 3x3, 256, pool -> 6; fc6 9,216 -> 4,096; fc7 4,096 -> 4,096; fc8 4,096 -> D
        small      32: conv 5x5/1, 96 -> 32, pool -> 15; the same, pool -> 7; ..; pool -> 3; fc6 2,304 -> 4,096; ..

    Convolutions and fc6, fc7 are without bias, followed by batch norm and ReLU; pools are 3x3/2 maxima.

    Args:
        stem: ``imagenet`` or ``small``.
        feature_dim: D.
    """
    first, grid = ((11, 4, 2), 6) if stem == "imagenet" else ((5, 1, 2), 3)
    modules = [
        *_convolution(3, 96, first),
        nn.MaxPool2d(3, 2),
        *_convolution(96, 256, (5, 1, 2)),
        nn.MaxPool2d(3, 2),
        *_convolution(256, 384, (3, 1, 1)),
        *_convolution(384, 384, (3, 1, 1)),
        *_convolution(384, 256, (3, 1, 1)),
        nn.MaxPool2d(3, 2),
    ]
    trunk = Stages(modules, {"conv1": 2, "conv2": 6, "conv3": 10, "conv4": 13, "conv5": 16})
    initialise_convolutions(trunk)
    head = nn.Sequential(
        *_fully_connected(256 * grid * grid), *_fully_connected(_WIDTH), nn.Linear(_WIDTH, feature_dim)
    )
    return EmbeddingNetwork(trunk, _Grid(grid), head)


def _convolution(channels_in: int, channels_out: int, window: tuple[int, int, int]) -> list[nn.Module]:
    """``window``: kernel size, stride, padding."""
    convolution = nn.Conv2d(channels_in, channels_out, *window, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


def _fully_connected(width_in: int) -> list[nn.Module]:
    return [nn.Linear(width_in, _WIDTH, bias=False), nn.BatchNorm1d(_WIDTH), nn.ReLU(inplace=True)]
