"""What can go wrong, by what is at fault. Messages name it and say what to do.

An argument that no call takes is Python's own ValueError or TypeError.
"""


class ThawlineError(Exception):
    """All of the below, and what is none of them."""


class WeightsError(ThawlineError):
    """A weights file or a state dict: unreadable, damaged, of another network."""


class ModelError(ThawlineError):
    """A network: an unknown name, a graph that does not hold together, an image size that it cannot take."""


class PolicyError(ThawlineError):
    """A policy: an unknown recipe, a malformed rule, one that does not suit the network."""


class ImageError(ThawlineError, ValueError):
    """Images or labels: their shape, type, number or values."""


class DeviceError(ThawlineError):
    """A device: none is there, it cannot be opened, it was lost."""


class OutOfMemoryError(DeviceError, MemoryError):
    """More than the device's memory or limits allow: a smaller batch or image may fit."""
