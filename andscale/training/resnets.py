"""ResNets: torchvision's, and a small one for the CPU."""

from torch import Tensor, nn
from torch.nn import functional

from andscale.training.embedding import EmbeddingNetwork, GlobalMean, Stages, initialise_convolutions


def build_small_resnet(feature_dim: int) -> EmbeddingNetwork:
    """A ResNet of three stages of one basic block, 0.3 million weights, for small images on a CPU.

    The stem halves the image at once: that gave the most accuracy for the time (docs/log.md).
    """
    modules = [
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        _Block(32, 32, stride=1),
        _Block(32, 64, stride=2),
        _Block(64, 128, stride=2),
    ]
    trunk = Stages(modules, {"conv1": 2, "conv2": 3, "conv3": 4, "conv4": 5})
    initialise_convolutions(trunk)
    return EmbeddingNetwork(trunk, GlobalMean(), nn.Linear(128, feature_dim))


def build_resnet(name: str, stem: str, feature_dim: int) -> EmbeddingNetwork:
    """ResNet-18, -34, -50 or -101 of torchvision.

    Args:
        name: ``resnet18`` and so on.
        stem: ``imagenet``: 7x7, stride 2, max-pool; ``small``: 3x3, stride 1, no pooling.
        feature_dim: D.
    """
    from torchvision import models

    resnet = getattr(models, name)(weights=None)
    if stem == "small":
        resnet.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.maxpool = nn.Identity()
    children = [module for child, module in resnet.named_children() if child not in ("avgpool", "fc")]
    # conv1, bn1, relu, maxpool, layer1 .. layer4
    trunk = Stages(children, {"conv1": 2, "conv2": 4, "conv3": 5, "conv4": 6, "conv5": 7})
    return EmbeddingNetwork(trunk, GlobalMean(), nn.Linear(resnet.fc.in_features, feature_dim))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016, basic block)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
