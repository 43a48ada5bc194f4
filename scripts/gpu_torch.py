#!/usr/bin/env python3
"""What training steps take in PyTorch, beside `thawline bench`: the same networks, batches and policies, on random data that is
on the device already. gpu.sh runs it; it writes its file anew after each result, so that it can be stopped at any time.

A time is the median of several steps after a warm-up, each waited for. A step is forward, backward and SGD with momentum.
Policies: `full` trains everything, with batch norms in train(); `keras-guide` trains everything, with batch norms in eval();
`bn-only` trains batch norms, in train(), and the head; `head` trains the head, with everything else in eval().
"""
import argparse
import json
import os
import statistics
import time

import torch
import torchvision

POLICIES = ["full", "keras-guide", "bn-only", "head"]

# By name: TF32, automatic mixed precision, channels_last, torch.compile.
MODES = {
    "fp32": (False, False, False, False),
    "tf32": (True, False, False, False),
    "amp": (True, True, False, False),
    "amp, channels_last": (True, True, True, False),
    "amp, channels_last, compile": (True, True, True, True),
    "fp32, compile": (False, False, False, True),
}
# Without CUDA there is neither TF32 nor a scaler, and compiling takes minutes.
CPU_MODES = {"fp32": (False, False, False, False), "fp32, channels_last": (False, False, True, False)}

REPEAT = 5


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default="resnet18,resnet50,efficientnet_b0,mobilenet_v3_large")
    parser.add_argument("--batches", default="4,32,128")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=90, help="nothing is begun after that")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def head_of(model):
    return model.fc if hasattr(model, "fc") else model.classifier


def prepare(model, policy):
    """Sets what trains, and the modes of all modules."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    everything = policy in ("full", "keras-guide")
    for parameter in model.parameters():
        parameter.requires_grad_(everything)
    if not everything:
        for parameter in head_of(model).parameters():
            parameter.requires_grad_(True)
    if policy == "bn-only":
        for norm in norms:
            for parameter in norm.parameters():
                parameter.requires_grad_(True)
    # As thawline's recipes do: where batch norms hold still, stochastic depth is off and dropout is on.
    model.train(policy in ("full", "bn-only"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(name, policy, batch, size, mode, device, deadline):
    tf32, amp, channels_last, compiled = mode
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torchvision.models.get_model(name, weights=None).to(device, memory_format=layout)
    prepare(model, policy)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=amp)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(1000, (batch,), device=device)
    forward = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.float16, enabled=amp):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def timed(run):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        return (time.perf_counter() - start) * 1e3

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = timed(step)
    # cuDNN's choice of algorithms is the first step's, the scaler's first scales fall in the others.
    warm = [timed(step) for _ in range(1 if device.type == "cpu" else 3)]
    if time.monotonic() + warm[-1] / 1e3 * REPEAT > deadline:
        raise TimeoutError(f"{REPEAT} steps of {warm[-1]:.0f} ms do not fit")
    runs = [timed(step) for _ in range(REPEAT)]
    median = statistics.median(runs)
    result = {"step_ms": median, "step_runs_ms": runs, "first_step_ms": first, "images_per_s": batch / median * 1e3}
    if device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def peaks(device):
    """The device's own roofline: a large matrix product in f32 and with TF32, and a copy, in 10⁹ operations and bytes a second."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    source = torch.empty(n * n * 2, device=device)
    target = torch.empty_like(source)

    def seconds(run):
        times = []
        for _ in range(4):
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    found = {}
    for name, tf32 in [("fp32", False), ("tf32", True)] if device.type == "cuda" else [("fp32", False)]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        found[f"{name}_gflops"] = 2 * n**3 / seconds(lambda: torch.matmul(a, b)) / 1e9
    found["copy_gbytes"] = 2 * 4 * source.numel() / seconds(lambda: target.copy_(source)) / 1e9
    return found


def main():
    args = parse()
    start = time.monotonic()
    deadline = start + args.seconds
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    report = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "threads": torch.get_num_threads(),
        "size": args.size,
        "peaks": None,
        "results": [],
    }

    def write():
        with open(args.out + ".new", "w") as file:
            json.dump(report, file, indent=1)
        os.replace(args.out + ".new", args.out)

    write()
    try:
        report["peaks"] = peaks(device)
    except RuntimeError as error:
        report["peaks"] = {"error": str(error).split("\n")[0]}
    models = args.models.split(",")
    batches = [int(batch) for batch in args.batches.split(",")]
    modes = MODES if cuda else CPU_MODES
    # What says the most first: one batch size of all networks, everything that trains, in every mode but compiled ones.
    middle = batches[len(batches) // 2]
    grid = [
        (mode, policy, batch, model)
        for mode in modes
        for policy in POLICIES
        for batch in batches
        for model in models
    ]
    grid.sort(key=lambda cell: ("compile" in cell[0], cell[1] != "full", cell[2] != middle))
    for mode, policy, batch, model in grid:
        result = {"model": model, "policy": policy, "batch": batch, "mode": mode}
        if time.monotonic() > deadline:
            result["error"] = f"left out: {args.seconds:.0f} s were over"
        else:
            try:
                result |= measure(model, policy, batch, args.size, modes[mode], device, deadline)
            except TimeoutError as error:
                result["error"] = f"left out: {error}"
            # Whatever it is, such as too little memory or no compiler: the others go on.
            except Exception as error:  # noqa: BLE001
                lines = str(error).strip().split("\n")
                result["error"] = f"{type(error).__name__}: {lines[0]}"
            if cuda:
                torch.cuda.empty_cache()
        report["results"].append(result)
        write()
    done = sum("error" not in result for result in report["results"])
    print(f"   {done} of {len(grid)} measured, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
