from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Union

from typing_extensions import Unpack

import keras
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

__version__: str

class _DLPack(Protocol):
    def __dlpack__(self) -> Any: ...

_Path = Union[str, PathLike[str]]
_Size = Union[int, tuple[int, int]]
_Array = Union[ArrayLike, _DLPack]
_Device = Union[Device, int, str]
_Policy = Union[Policy, str]
_Head = Literal["required", "optional", "new"]
_Optimizer = Literal["sgd", "adamw"]

class Preprocessing(TypedDict, total=False):
    """How an image becomes the network's input; mean and std are of red, green and blue as values from 0 to 1."""

    resize: Literal["stretch", "crop", "crop-first", "pad"]
    crop: float
    interpolation: Literal["nearest", "bilinear", "bicubic", "tf-nearest", "tf-bilinear", "tf-bicubic"]
    mean: Sequence[float]
    std: Sequence[float]
    bgr: bool

class Layer(TypedDict):
    number: str
    name: str
    kind: str
    block: str | None
    output: tuple[int, int, int]
    parameters: int

class Result(TypedDict):
    """Means over samples: the loss in nats, top1 and top5 as shares from 0 to 1."""

    loss: float | None
    top1: float | None
    top5: float | None
    samples: int

class OptimizerState(TypedDict):
    steps: int
    first_moment: dict[str, NDArray[np.float32]]
    second_moment: dict[str, NDArray[np.float32]]

class DeviceFacts(TypedDict, total=False):
    index: int
    name: str
    driver: str
    backend: str
    kind: str
    largest_buffer: int
    features: list[str]

class Network(TypedDict):
    name: str
    library: str | None
    size: tuple[int, int]
    classes: int

class Recipe(TypedDict):
    name: str
    summary: str
    rules: list[str]
    stages: list[tuple[float, list[str]]]

class Model:
    """A network with its weights, how images are prepared for it, and its classes. It never changes: training gives another."""

    @staticmethod
    def open(
        path: _Path,
        model: str | None = None,
        classes: int | None = None,
        *,
        size: _Size | None = None,
        head: _Head = "required",
        seed: int = 0,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        weights_set: str | None = None,
        _file: object = None,
    ) -> Model:
        """Opens a weights file: safetensors, PyTorch's, Keras's or ONNX."""

    @staticmethod
    def new(
        name: str,
        classes: int | None = None,
        seed: int = 0,
        *,
        size: _Size | None = None,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Model:
        """A network by name, or of a graph file, with random weights."""

    @staticmethod
    def from_state_dict(
        state: Mapping[str, _Array],
        model: str | None = None,
        classes: int | None = None,
        *,
        size: _Size | None = None,
        head: _Head = "required",
        seed: int = 0,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        config: str | None = None,
    ) -> Model:
        """The model of tensors by PyTorch's names: what `state_dict()` gives, as arrays."""

    @property
    def name(self) -> str: ...
    @property
    def library(self) -> str | None: ...
    @property
    def classes(self) -> int: ...
    @property
    def class_names(self) -> list[str] | None: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def parameters(self) -> int: ...
    def layers(self) -> list[Layer]:
        """The layers in the order in which they run, a dict each."""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The weights as NumPy arrays by PyTorch's names and in PyTorch's layouts, copied."""

    def to_torch(self) -> dict[str, torch.Tensor]:
        """The weights as torch tensors on the CPU, for a module's `load_state_dict`."""

    def load_into(self, target: torch.nn.Module | keras.Model) -> None:
        """Puts the weights into a torch module of the same network, or into a Keras model."""

    def save(self, path: _Path) -> list[str]:
        """Writes the model as safetensors, ONNX, or a copy of its Keras file; returns notes on the file."""

    def _save_copy(self, template: _Path, path: _Path) -> list[str]: ...
    def logits(self, images: _Array, *, batch: int | None = None, device: _Device | None = None) -> NDArray[np.float32]:
        """The logits [N, classes] of float32 [N, 3, H, W], normalised, or uint8 [N, H, W, 3], RGB pixels."""

    def predict(self, images: _Array, *, batch: int | None = None, device: _Device | None = None) -> NDArray[np.float32]:
        """The probabilities [N, classes] of float32 [N, 3, H, W], normalised, or uint8 [N, H, W, 3], RGB pixels."""

    def evaluate(
        self, images: _Array, labels: _Array, *, batch: int | None = None, device: _Device | None = None
    ) -> Result:
        """Loss and accuracy on labelled images under the running statistics."""

    def plan(
        self,
        policy: _Policy,
        *,
        batch: int = 32,
        size: _Size | None = None,
        optimizer: _Optimizer = "sgd",
        momentum: float | None = None,
        accumulate: int = 1,
    ) -> Plan:
        """What a training step under a policy costs, before anything runs. Needs no device."""

class Policy:
    """What trains, what moves and what stays: a recipe's rules, and more after them."""

    def __new__(cls, recipe: str, sets: Sequence[str] = ()) -> Policy: ...
    @staticmethod
    def from_file(path: _Path, sets: Sequence[str] = ()) -> Policy:
        """The policy file at `path`, with more rules behind its own."""

    @property
    def name(self) -> str: ...
    @property
    def rules(self) -> list[str]: ...
    @property
    def stages(self) -> list[tuple[float, list[str]]]: ...

class Plan:
    """What a training step costs under a policy, computed without a device."""

    @property
    def memory(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def warnings(self) -> list[str]: ...
    def to_dict(self) -> dict[str, Any]:
        """All numbers, under the names of `thawline plan --json`."""

    def _repr_html_(self) -> str: ...

class Session:
    """A training run on a device: a network compiled for a policy, and nothing else than what that trains."""

    def __new__(
        cls,
        model: Model,
        policy: _Policy,
        *,
        optimizer: _Optimizer = "sgd",
        lr: float = 0.01,
        batch: int = 32,
        size: _Size | None = None,
        momentum: float | None = None,
        nesterov: bool = False,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        accumulate: int = 1,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        stage: int = 0,
        seed: int = 0,
        device: _Device | None = None,
    ) -> Session: ...

    lr: float

    @property
    def batch(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def policy(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def memory(self) -> int: ...
    @property
    def device(self) -> Device: ...
    def step(self, images: _Array, labels: _Array, lr: float | None = None) -> Result:
        """Trains on one batch; the result is of the weights before the step."""

    def evaluate(self, images: _Array, labels: _Array) -> Result:
        """Loss and accuracy on any number of labelled images, with the weights as they are now."""

    def model(self) -> Model:
        """The model with the weights as they are now."""

    def save(self, path: _Path) -> list[str]:
        """Writes the model with the weights as they are now, as `Model.save` does."""

    def optimizer_state(self) -> OptimizerState:
        """The optimiser's state, to go on later."""

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Goes on where another session of the same model, policy and optimiser was."""

class Comparison:
    """What a comparison of policies found."""

    @property
    def folder(self) -> Path: ...
    @property
    def finished(self) -> bool: ...
    @property
    def report(self) -> Path: ...
    @property
    def weights(self) -> list[Path]: ...
    @property
    def rows(self) -> list[dict[str, Any]]: ...
    @property
    def conclusion(self) -> list[str]: ...
    def to_dict(self) -> dict[str, Any]: ...
    def _repr_html_(self) -> str: ...

class _Options(TypedDict, total=False):
    classes: int
    size: _Size
    epochs: int
    batch: int
    accumulate: int
    seed: int
    optimizer: _Optimizer
    momentum: float
    nesterov: bool
    weight_decay: float
    label_smoothing: float
    class_weights: _Path
    sampler: Literal["shuffled", "balanced"]
    patience: int
    schedule: Literal["constant", "cosine", "step"]
    warmup: int
    final_lr: float
    step_epochs: int
    gamma: float
    augment: Literal["none", "flip", "crop", "crop-flip"]
    train_images: int
    val_fraction: float
    skip_broken: bool
    exif: Literal["apply", "ignore"]
    max_pixels: int
    head: Literal["keep", "new"]
    then: Literal["recalibrate"]
    weights_set: str

def finetune(
    weights: Model | _Path | None,
    data: _Path,
    out: _Path,
    policy: _Policy | None = None,
    *,
    model: str | None = None,
    lr: float | Literal["auto"] | None = None,
    device: _Device | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    resume: bool = False,
    **options: Unpack[_Options],
) -> dict[str, Any]:
    """Fine-tunes a network on a folder of images: `thawline finetune`."""

def compare(
    weights: Model | _Path | None,
    data: _Path,
    out: _Path,
    policies: Sequence[_Policy] | None = None,
    *,
    model: str | None = None,
    seeds: int = 3,
    lr: float | Sequence[float] | Literal["auto"] | None = None,
    cache_mib: int = 1024,
    device: _Device | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    resume: bool = False,
    **options: Unpack[_Options],
) -> Comparison:
    """Compares policies on the same images, from the same weights, with the same budget: `thawline compare`."""

class Device:
    """A GPU, or a driver that computes on the CPU."""

    def __new__(
        cls, select: int | str | None = None, *, backend: str | None = None, timeout: float | None = None
    ) -> Device: ...
    @property
    def name(self) -> str: ...
    @property
    def backend(self) -> str: ...
    def to_dict(self) -> DeviceFacts: ...

def devices(backend: str | None = None) -> list[DeviceFacts]:
    """Every device that can be opened, a dict each; the first is the default."""

def models() -> list[Network]:
    """The networks that have a name, a dict each."""

def recipes() -> list[Recipe]:
    """The policies that have a name, a dict each."""
