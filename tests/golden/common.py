"""What the scripts that write goldens share: the values that both sides compute, how far results are apart, the files.

README.md says what is in the files, and how to read them. Arrays are NumPy's, or any that it can read.
"""

import fnmatch
import json
import zipfile
from pathlib import Path

import numpy as np

PROJECTIONS = 4
# What a reader may allow: no further from f64 than 5x the framework's own f32 is, over these floors in relative norm.
ALLOWED, STATE_FLOOR, GRAD_FLOOR = 5.0, 2e-5, 5e-5
# What an f32 run that stands in for a foreign implementation may use up of that.
FOREIGN = 0.6


def shipped(library):
    """The names, in `torchvision` or `timm`, of the networks whose graphs are part of Thawline."""
    with zipfile.ZipFile(Path(__file__).parents[2] / "assets" / "graphs.zip") as archive:
        index = json.loads(archive.read("index.json"))
    return [entry["name"].removeprefix("timm_") for entry in index if entry["library"] == library]


# ---- Values that both sides compute ----------------------------------------------------------------------------------


def splitmix(name, count):
    """The first `count` 64-bit outputs of the stream `name`: SplitMix64 seeded with the name's FNV-1a hash."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) % 2**64
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(name, shape):
    """Multiples of 2^-23 in [-1, 1), so exact in f32, as f64."""
    count = int(np.prod(shape))
    return ((splitmix(name, count) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0).reshape(shape)


def initial(name, batch_norm, shape, values):
    """The tensor `name`, computed in f64 and rounded once to f32. `batch_norm` says whether its layer is one."""
    u = uniform(name, shape)
    role = name.rsplit(".", 1)[1]
    own = next((rest for pattern, *rest in values if fnmatch.fnmatchcase(name, pattern)), None)
    if own:
        offset, scale = own
        value = offset + scale * u
    elif len(shape) == 4:
        value = u * np.sqrt(6.0 / np.prod(shape[1:]))
    elif len(shape) == 2:
        value = u / np.sqrt(shape[1])
    elif not batch_norm:
        value = 0.1 * u
    elif name.endswith(".bn3.weight"):
        # Under batch statistics a random bottleneck network multiplies rounding errors a hundredfold by its last layer,
        # unless its branches are weak, as training leaves them.
        value = 0.1 + 0.05 * u
    else:
        value = {
            "weight": 0.7 + 0.2 * u,
            "bias": 0.2 * u,
            "running_mean": 0.1 * u,
            "running_var": 1.0 + 0.5 * u,
        }[role]
    return value.astype(np.float32)


def images(stream, n, h, w):
    """NCHW"""
    return (2.0 * uniform(stream, (n, 3, h, w))).astype(np.float32)


def pixels(stream, n, h, w):
    """Bytes, NCHW"""
    return (splitmix(stream, n * 3 * h * w) >> np.uint64(56)).astype(np.uint8).reshape(n, 3, h, w)


def labels(n, classes):
    return ((splitmix("labels", n) >> np.uint64(33)) % np.uint64(classes)).astype(np.int64)


# ---- How far results are apart ---------------------------------------------------------------------------------------


class Signs:
    """The rows of +1 and -1 that tensors are projected on, cut from the longest one seen so far."""

    rows = np.zeros((PROJECTIONS, 0), np.int8)

    @classmethod
    def get(cls, count):
        if count > cls.rows.shape[1]:
            bits = [splitmix(f"proj:{k}", count) >> np.uint64(63) for k in range(PROJECTIONS)]
            cls.rows = np.stack([1 - 2 * b.astype(np.int8) for b in bits])
        return cls.rows[:, :count]


def flat(tensor):
    return np.asarray(tensor, np.float64).reshape(-1)


def project(tensor):
    t = flat(tensor)
    return np.array([np.dot(row.astype(np.float64), t) for row in Signs.get(t.size)]) / np.sqrt(t.size)


def norm_of(tensor):
    return float(np.linalg.norm(flat(tensor)))


def distance(a, truth, norm=None):
    """||a - truth|| / norm, which is ||truth|| if not given."""
    return float(np.linalg.norm(flat(a) - flat(truth))) / (norm or norm_of(truth))


def estimated_distance(a, truth, norm):
    """The same from the projections alone, as a reader of the files estimates it."""
    return np.sqrt(np.mean((project(a) - project(truth)) ** 2) * flat(truth).size) / norm


def gradient_norm(name, grads):
    """||gradient||, or that of the layer's weight where this one vanishes.

    A bias has no gradient if nothing that bends stands between it and the next batch norm, which takes the batch's
    mean away again: what a run leaves there is nothing but rounding.
    """
    norm, weight = norm_of(grads[name]), grads.get(f"{name.rsplit('.', 1)[0]}.weight")
    return norm_of(weight) if weight is not None and norm < 1e-9 * norm_of(weight) else norm


def results(run):
    """Each result's name, value, floor, and the norm that distances from it are relative to."""
    yield from ((f"grad {n}", t, GRAD_FLOOR, gradient_norm(n, run.grads)) for n, t in run.grads.items())
    yield from ((f"param {n}", t, STATE_FLOOR, norm_of(t)) for n, t in run.params.items())
    yield from ((f"stat {n}", t, STATE_FLOOR, norm_of(t)) for n, t in run.stats.items())
    yield "logits before", run.logits_before, STATE_FLOOR, norm_of(run.logits_before)
    yield "logits after", run.logits_after, STATE_FLOOR, norm_of(run.logits_after)
    yield from ((f"loss {i}", x, STATE_FLOOR, abs(x)) for i, x in enumerate(run.losses))


def foreign_share(truth, single, foreign):
    """The worst share of what is allowed that the foreign f32 run uses up, and where."""
    worst = (0.0, "")
    runs = zip(results(truth), results(single), results(foreign))
    for (name, t64, floor, norm), (_, t32, *_), (_, other, *_) in runs:
        allowed = max(ALLOWED * distance(t32, t64, norm), floor)
        used = max(distance(other, t64, norm), estimated_distance(other, t64, norm)) / allowed
        worst = max(worst, (used, name))
    return worst


# ---- Files -----------------------------------------------------------------------------------------------------------


def digits(value, count):
    return float(f"{value:.{count}g}")


def summary(truth, single, norm):
    """One tensor: its shape, the norm and projections of the f64 result, and the f32 run's distance from it."""
    return {
        "shape": list(truth.shape),
        "norm": digits(norm, 10),
        "proj": [digits(p, 10) for p in project(truth)],
        "err32": digits(distance(single, truth, norm), 3),
    }


def logits_summary(truth, single):
    return {"f64": [digits(x, 10) for x in flat(truth)], "err32": digits(distance(single, truth), 3)}


def layer_of(name):
    return name.rsplit(".", 1)[0]


def listed_layers(case, run):
    """The layers whose tensors the file has where it has only a part: every so many, and the first and the last that
    train. None where it has all."""
    if "part" not in case:
        return None
    first, every = case["part"]
    trained = list(dict.fromkeys(map(layer_of, run.params)))
    layers = list(dict.fromkeys([*trained, *map(layer_of, [*run.stats, *run.frozen])]))
    return {trained[0], trained[-1], *layers[first::every]}


def record(case, stream, truth, single, least):
    """A case as the files hold it. `least` is the margin to the nearest kink, infinite where there is none."""

    listed = listed_layers(case, truth)

    def kept(names):
        return [name for name in names if listed is None or layer_of(name) in listed]

    def summaries(t64, t32):
        return {name: summary(t64[name], t32[name], norm_of(t64[name])) for name in kept(t64)}

    norms = {name: gradient_norm(name, truth.grads) for name in kept(truth.grads)}
    return {
        **case,
        "images": stream,
        "labels": "labels",
        "margin": None if np.isinf(least) else digits(least, 3),
        "loss": {"f64": [digits(x, 12) for x in truth.losses], "f32": [digits(x, 10) for x in single.losses]},
        "logits_before": logits_summary(truth.logits_before, single.logits_before),
        "logits_after": logits_summary(truth.logits_after, single.logits_after),
        "grads": {name: summary(truth.grads[name], single.grads[name], norm) for name, norm in norms.items()},
        "params": summaries(truth.params, single.params),
        "stats": summaries(truth.stats, single.stats),
        "frozen": kept(truth.frozen),
    }


def inference_record(case, truth, single, foreign):
    """An inference's case as the files hold it; ends the script where the initial values make a poor one."""
    used = distance(foreign, truth) / max(ALLOWED * distance(single, truth), STATE_FLOOR)
    apart, spread = distance(truth[1], truth[0]), flat(truth).std()
    print(
        f"inference/{case['model']}: logits {spread:.2f}, the images' {apart:.2f} apart, "
        f"f32 error {distance(single, truth):.1e}, foreign {used:.2f}",
        flush=True,
    )
    assert used < FOREIGN and apart > 0.1 and 0.3 < spread < 10.0, f"{case['model']}: choose other initial values"
    return {**case, "logits": logits_summary(truth, single)}


def write(path, header, records):
    """JSON with a line a tensor and a line for any other field, so that differences can be read."""

    def field(key, value):
        if key in ("grads", "params", "stats") and value:
            rows = ",\n".join(f"    {json.dumps(n)}: {json.dumps(t, separators=(',', ':'))}" for n, t in value.items())
            return f'   "{key}": {{\n{rows}\n   }}'
        return f'   "{key}": {json.dumps(value, separators=(",", ":"))}'

    cases = ",\n".join("  {\n" + ",\n".join(field(k, v) for k, v in r.items()) + "\n  }" for r in records)
    head = "".join(f' "{k}": {json.dumps(v)},\n' for k, v in header.items())
    path.write_text(f'{{\n{head} "cases": [\n{cases}\n ]\n}}\n')


# ---- Cases -----------------------------------------------------------------------------------------------------------


def sgd(lr=0.05, momentum=0.9, nesterov=False, weight_decay=1e-3):
    return {"kind": "sgd", "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}


def case(
    model,
    classes,
    n,
    h,
    w,
    policy,
    steps,
    sets=(),
    values=(),
    optimizer=None,
    tag=None,
    smoothing=0.0,
    accumulate=1,
    part=None,
):
    optimizer = optimizer or sgd()
    name = "-".join([policy] + ([tag] if tag else []) + [optimizer["kind"], str(steps)])
    return {
        "name": name,
        "model": model,
        "classes": classes,
        "n": n,
        "h": h,
        "w": w,
        "policy": policy,
        "sets": list(sets),
        "values": list(values),
        "optimizer": optimizer,
        "steps": steps,
        "accumulate": accumulate,
        "label_smoothing": smoothing,
        "optional": accumulate > 1,  # PyTorch itself has no word on how a window's statistics are committed
        **({"part": list(part)} if part else {}),
    }
