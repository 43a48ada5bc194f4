"""Fine-tune convolutional networks on any GPU, with every batch-norm choice explicit, priced and measured.

>>> import thawline
>>> model = thawline.Model.open("resnet18.pth", classes=10)
>>> print(model.plan("bn-only"))                       # what it costs, before anything runs
>>> session = thawline.Session(model, "bn-only", batch=32, lr=0.01)
>>> session.step(images, labels)                       # float32 [32, 3, 224, 224], int64 [32]
>>> session.save("tuned.safetensors")
"""

from thawline._thawline import (
    Comparison,
    Device,
    Model,
    Plan,
    Policy,
    Session,
    __version__,
    compare,
    devices,
    finetune,
    models,
    recipes,
)
from thawline.bridges import from_keras, from_torch
from thawline.errors import (
    DeviceError,
    ImageError,
    ModelError,
    OutOfMemoryError,
    PolicyError,
    ThawlineError,
    WeightsError,
)

__all__ = [
    "Comparison",
    "Device",
    "DeviceError",
    "ImageError",
    "Model",
    "ModelError",
    "OutOfMemoryError",
    "Plan",
    "Policy",
    "PolicyError",
    "Session",
    "ThawlineError",
    "WeightsError",
    "__version__",
    "compare",
    "devices",
    "finetune",
    "from_keras",
    "from_torch",
    "models",
    "recipes",
]
