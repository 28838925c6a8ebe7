"""Any network of timm by name, with random weights; nothing is ever downloaded."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from andscale.errors import UsageError
from andscale.training.embedding import EmbeddingNetwork


class TimmTrunk(nn.Module):
    """A network of timm without its classifier: pooled features; its maps where timm names them."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        names = [info["module"] for info in getattr(model, "feature_info", [])]
        has_maps = hasattr(model, "forward_intermediates") and len(set(names)) == len(names)
        self.tap_names = tuple(names) if has_maps else ()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C), pooled."""
        pooled: Tensor = self.model(images)
        return pooled

    def maps(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The intermediate maps by timm's names for them, each (B, C, h, w); and the pooled features."""
        if not self.tap_names:
            return {}, self(images)
        x, maps = self.model.forward_intermediates(images, output_fmt="NCHW")
        return dict(zip(self.tap_names, maps, strict=True)), self.model.forward_head(x)


def build_timm(name: str, feature_dim: int, image_size: int | None = None) -> EmbeddingNetwork:
    """A network of timm and a linear head; ``image_size`` None is the network's own.

    Raises:
        UsageError: as ``check_timm``.
    """
    width = check_timm(name, image_size)
    return EmbeddingNetwork(TimmTrunk(_create(name, image_size)), nn.Identity(), nn.Linear(width, feature_dim))


def check_timm(name: str, image_size: int | None = None) -> int:
    """Build the network without memory and push images through; returns the number of its pooled features.

    Raises:
        UsageError: timm is not installed, has no such network, or it does not take images of this size.
    """
    try:
        import timm
    except ImportError:
        raise UsageError(
            f"model.backbone = timm:{name} needs timm: install it with 'pip install andscale[timm]'"
        ) from None
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"closest: {', '.join(close)}" if close else "timm.list_models() gives the names"
        raise UsageError(f"timm {timm.__version__} has no network {name!r}: {hint}")
    try:
        # on the meta device tensors have shapes and no values: a second at most, whatever the network's size
        with torch.device("meta"), torch.no_grad():
            model = _create(name, image_size).eval()
            size = image_size or model.pretrained_cfg["input_size"][-1]
            pooled = model(torch.empty(2, 3, size, size))
    except Exception as error:  # networks refuse sizes in as many ways as there are networks
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"timm:{name} does not take images of {image_size} pixels: {reason}") from None
    if pooled.ndim != 2:
        raise UsageError(f"timm:{name} gives no pooled features but {tuple(pooled.shape)}: choose another network")
    return int(pooled.shape[1])


def _create(name: str, image_size: int | None) -> Any:
    import timm

    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": 3}
    if image_size is not None:
        try:
            return timm.create_model(name, **arguments, img_size=image_size)
        except TypeError as error:  # networks that take any size have no such argument
            if "img_size" not in str(error):
                raise
    return timm.create_model(name, **arguments)
