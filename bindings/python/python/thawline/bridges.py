"""To and from objects of PyTorch and Keras, neither of which is imported before it is needed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thawline._thawline import Model

if TYPE_CHECKING:
    import keras
    import torch

__all__ = ["from_keras", "from_torch"]


def from_torch(module: torch.nn.Module | Mapping[str, torch.Tensor], model: str | None = None, **keywords: Any) -> Model:
    """The model of a torch module, or of its `state_dict()`. The weights are copied.

    The network is found by the names and shapes of its tensors; of a timm module its `pretrained_cfg` tells the network and
    how images are prepared, too.

    Args:
        module: A network of torchvision or timm, or a mapping of names to tensors.
        model: The network, by a name of `models()` or a graph file, where the tensors do not tell.
        keywords: Those of `Model.from_state_dict`.
    """
    if hasattr(module, "load_weights"):
        raise TypeError("this is a Keras model: give it to from_keras")
    if not isinstance(module, Mapping):
        if "config" not in keywords and isinstance(about := getattr(module, "pretrained_cfg", None), dict):
            about = {"architecture": about.get("architecture"), "pretrained_cfg": about}
            keywords["config"] = json.dumps(about, default=str)
        module = module.state_dict()
    return Model.from_state_dict({name: _array(value) for name, value in module.items()}, model, **keywords)


def _array(value: Any) -> Any:
    """What NumPy takes of a tensor that may be on a GPU, need a gradient, or be of a type that NumPy lacks."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def from_keras(model: keras.Model, **keywords: Any) -> Model:
    """The model of a Keras model: its network, its preprocessing and a copy of its weights.

    Args:
        model: A functional or sequential model for image classification.
        keywords: Those of `Model.open`.
    """
    # Kept as long as the result: what that writes for Keras is a copy of the file.
    folder = tempfile.TemporaryDirectory(prefix="thawline-")
    path = _file(model, folder.name)
    return Model.open(path, **keywords, _file=folder)


def to_torch(model: Model) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in model.state_dict().items()}


def load_into(model: Model, target: torch.nn.Module | keras.Model) -> None:
    # A Keras model first: on Keras's torch backend it is a torch module, too.
    if hasattr(target, "load_weights"):
        with tempfile.TemporaryDirectory(prefix="thawline-") as folder:
            tuned = Path(folder, "tuned.keras")
            model._save_copy(_file(target, folder), tuned)
            target.load_weights(tuned)
    elif hasattr(target, "load_state_dict"):
        target.load_state_dict(to_torch(model))
    else:
        raise TypeError(f"expected a torch module or a Keras model, not {type(target).__name__}")


def _file(model: keras.Model, folder: str) -> Path:
    """A file of a Keras model in a folder."""
    path = Path(folder, "model.keras")
    model.save(path)
    return path
