"""``config.json`` of a ``model/``: all that is needed beside the weights to use the network anywhere."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from andscale.config import ModelConfig
from andscale.config_resources import Section
from andscale.errors import RunError
from andscale.store.files import read_record_bytes

CONFIG_NAME = "config.json"

_Positive = Annotated[float, Field(gt=0)]


class Crop(Section):
    """The evaluation transform's crop and resize, as data/augment.py does them."""

    region: Literal["central square"] = "central square"
    fraction: float = 0.875
    """224/256: the square's side, as a share of the short side."""
    fraction_above_image_size_only: Literal[True] = True
    """Where the short side is not longer than ``image_size``, all of it is taken."""
    resize: Literal["bilinear, antialiased"] = "bilinear, antialiased"


class ModelRecord(Section):
    """The content of ``config.json``."""

    format: Literal["andscale.model"] = "andscale.model"
    format_version: Literal[1] = 1
    andscale: str
    """The version that wrote it."""
    model: ModelConfig
    image_size: int = Field(ge=4, le=1024)
    """Height and width of the input, pixels."""
    mean: tuple[float, float, float]
    """Of red, green and blue, in units of full intensity."""
    std: tuple[_Positive, _Positive, _Positive]
    crop: Crop = Crop()
    tap_names: tuple[str, ...]
    """What ``EmbeddingNetwork.taps`` gives, in order."""


def read_record(folder: Path) -> ModelRecord:
    """Read ``config.json``.

    Raises:
        RunError: missing, damaged, or of a newer andscale.
    """
    path = folder / CONFIG_NAME
    try:
        record = ModelRecord.model_validate_json(read_record_bytes(path))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "no JSON"
        raise RunError(
            f"{path} is no record of a model that this andscale reads ({where}: {first['msg']}): it is damaged, or of "
            "another version"
        ) from None
    except ValueError as error:
        raise RunError(f"{path} is no record of a model: {error}") from None
    if record.crop != Crop():
        raise RunError(f"{path} asks for a crop of {record.crop.fraction}: read it with andscale {record.andscale}")
    return record
