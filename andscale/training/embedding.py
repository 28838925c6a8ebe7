"""What every backbone becomes: images in, unit-length features out, and the maps on the way for those who ask."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional


class Trunk(Protocol):
    """A convolutional trunk that can also give the maps on the way."""

    tap_names: tuple[str, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 -> what the network's pooling takes."""

    def maps(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The maps by tap name, in order, each (B, C, h, w); and the trunk's result."""


class Stages(nn.Sequential):
    """Modules one after the other, with names for the maps that leave some of them.

    Args:
        modules: the modules in order.
        taps: name -> position of the module whose result it is, in ascending order.
    """

    def __init__(self, modules: Sequence[nn.Module], taps: Mapping[str, int]):
        super().__init__(*modules)
        self.tap_names = tuple(taps)
        self._names = {position: name for name, position in taps.items()}

    def maps(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The maps by tap name, in order, each (B, C, h, w); and the last module's result."""
        found = {}
        x = images
        for position, module in enumerate(self):
            x = module(x)
            if position in self._names:
                found[self._names[position]] = x
        return found, x


class GlobalMean(nn.Module):
    """Global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C)."""
        return x.mean(dim=(2, 3))


class EmbeddingNetwork(nn.Module):
    """A trunk, its pooling and a head to the unit sphere.

    x = head(pool(trunk(images))),   feature = x / |x|

    Attributes:
        tap_names: names of the maps that ``taps`` gives, in order, and last ``embedding``.
    """

    def __init__(self, trunk: Trunk, pool: nn.Module, head: nn.Module):
        super().__init__()
        assert isinstance(trunk, nn.Module)
        self.trunk, self.pool, self.head = trunk, pool, head
        self.tap_names: tuple[str, ...] = (*trunk.tap_names, "embedding")

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W) float32, normalised.

        Returns:
            (B, D) float32, unit length.
        """
        return self._embed(self.trunk(images))

    def taps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps on the way and the feature, in one pass.

        Args:
            images: (B, 3, H, W) float32, normalised.

        Returns:
            In the order of ``tap_names``: (B, C, h, w) float32 of each convolutional stage, after its ReLU and before
            any pooling; last ``embedding``, what ``forward`` gives.
        """
        found, x = self.trunk.maps(images)
        return {**found, "embedding": self._embed(x)}

    def _embed(self, x: Tensor) -> Tensor:
        return functional.normalize(self.head(self.pool(x)), dim=1)


def initialise_convolutions(module: nn.Module) -> None:
    """He's initialisation by fan-out for every convolution; other modules keep torch's."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
