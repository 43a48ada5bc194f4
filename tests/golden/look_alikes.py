"""Which networks of timm and torchvision have the same names and shapes of tensors as one that Thawline knows.

    look_alikes.py > ../../src/models/look_alikes.txt
    look_alikes.py resnet efficientnet mobilenetv3          # of timm only these modules: minutes instead of an hour

Every network of both libraries is built without values, and its list of tensors compared with those of the networks that are
recognised. Where the lists are the same, both get the same random values and the same images: `same` are those whose head
then gets the same input, `differs` those whose head gets another one, so that a weights file alone does not say which of
them it is for. A line is the network's name here, `same` or `differs`, the library, and the names there.
"""

import functools
import sys
import warnings
from collections import defaultdict

import timm
import torch
import torchvision
from state_dicts import TIMM, TORCHVISION
from timm.models._registry import _model_entrypoints, _module_to_models

SIZE = 64
TOLERANCE = 1e-4


def build(library, name):
    if library == "torchvision":
        return torchvision.models.get_model(name, weights=None, **({"init_weights": False} if "ception" in name or name == "googlenet" else {}))
    return timm.create_model(name, pretrained=False, num_classes=1000)


def tensors(library, name):
    try:
        with torch.device("meta"):
            state = build(library, name).state_dict()
    except (NotImplementedError, RuntimeError):
        # It computes with its initial values.
        state = build(library, name).state_dict()
    # Classifiers that are for training only are left out where a file is read.
    return frozenset(
        (n, tuple(t.shape)) for n, t in state.items()
        if not n.endswith("num_batches_tracked") and not {"AuxLogits", "aux1", "aux2"} & set(n.split("."))
    )


def values(name, shape):
    generator = torch.Generator().manual_seed(hash_of(name))
    draw = torch.rand(shape, generator=generator)
    if name.endswith("running_var"):
        return 0.5 + draw
    if len(shape) == 1:
        return 0.5 + draw if name.endswith("weight") else 0.2 * draw - 0.1
    fan_in = shape[1:].numel()
    return (2 * draw - 1) * (6 / fan_in) ** 0.5


def hash_of(name):
    return int.from_bytes(name.encode(), "little") % (2**63 - 25)


@functools.cache
def before_head(library, name):
    model = build(library, name).eval()
    for n, t in model.state_dict().items():
        if t.is_floating_point():
            t.copy_(values(n, t.shape))
    head = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    seen = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for size in (SIZE, 224):
        images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(1)) * 4 - 2
        try:
            with torch.no_grad():
                model(images)
            break
        except (AssertionError, RuntimeError):
            # Inception and VGG take no images of 64 pixels.
            seen.clear()
    assert seen[-1].isfinite().all() and seen[-1].norm() > 0, name
    return seen[-1]


def main():
    warnings.filterwarnings("ignore")
    # Initial values are replaced, and take most of the time.
    for draw in ("normal_", "uniform_", "erfinv_"):
        setattr(torch.Tensor, draw, lambda tensor, *_, **__: tensor.zero_())
    known = {name: ("torchvision", name) for name in TORCHVISION}
    known |= {f"timm_{name}" if name in TORCHVISION else name: ("timm", name) for name in TIMM}
    every = [("torchvision", name) for name in torchvision.models.list_models(torchvision.models)]
    modules = sys.argv[1:] or _module_to_models
    every += [("timm", name) for name in sorted(_model_entrypoints) if any(name in _module_to_models[m] for m in modules)]
    alike = defaultdict(list)
    left_out = []
    for library, name in every:
        try:
            alike[tensors(library, name)].append((library, name))
        except Exception as error:
            left_out.append(f"{library} {name} ({type(error).__name__})")
    print(f"# timm {timm.__version__}, torchvision {torchvision.__version__}: {len(every)} networks; see "
          "tests/golden/look_alikes.py")
    for ours, (library, name) in known.items():
        verdicts = defaultdict(list)
        for other in alike[tensors(library, name)]:
            apart = 0
            if other != (library, name):
                reference = before_head(library, name)
                apart = ((before_head(*other) - reference).norm() / reference.norm()).item()
            print(f"{ours}: {' '.join(other)} is {apart:.1e} apart", file=sys.stderr)
            verdicts["same" if apart < TOLERANCE else "differs", other[0]].append(other[1])
        for (verdict, from_library), names in sorted(verdicts.items()):
            print(ours, verdict, from_library, *names)
    print("not built:", *left_out, sep="\n  ", file=sys.stderr)


if __name__ == "__main__":
    main()
