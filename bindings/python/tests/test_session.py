import _thread
import threading
import time

import numpy as np
import pytest

import thawline
from thawline import Model, Session


def changed(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_a_policy_trains_what_it_says_and_nothing_else(weights, batch):
    model = Model.open(weights, classes=4)
    session = Session(model, "head", batch=8, size=16, lr=0.01)
    losses = [session.step(*batch)["loss"] for _ in range(5)]
    assert losses[-1] < losses[0] and session.steps == 5
    assert changed(model.state_dict(), session.model().state_dict()) == {"fc.weight", "fc.bias"}
    assert session.size == (16, 16) and session.batch == 8 and session.policy == "head"
    assert session.memory > 0 and session.device.name


def test_saved_weights_are_those_of_the_session(weights, batch, tmp_path):
    session = Session(Model.open(weights, class_names=list("abcd")), "full", batch=8, size=16)
    session.step(*batch)
    session.save(tmp_path / "tuned.safetensors")
    tuned = Model.open(tmp_path / "tuned.safetensors")
    assert tuned.class_names == list("abcd") and tuned.size == (16, 16)
    assert not changed(tuned.state_dict(), session.model().state_dict())
    found = session.evaluate(*batch)
    assert found == pytest.approx(tuned.evaluate(*batch), rel=1e-5)
    session.step(*batch)
    assert session.evaluate(*batch)["loss"] != found["loss"]


def test_the_learning_rate_is_the_steps_or_the_sessions(weights, batch):
    model = Model.open(weights, classes=4)
    session = Session(model, "head", batch=8, size=16, lr=0.0, momentum=0)
    session.step(*batch)
    assert not changed(model.state_dict(), session.model().state_dict())
    session.step(*batch, lr=0.1)
    assert changed(model.state_dict(), session.model().state_dict())
    session.lr = 0.5
    assert session.lr == 0.5
    for lr in [-1, float("nan"), float("inf")]:
        with pytest.raises(ValueError, match="lr is"):
            session.lr = lr
        with pytest.raises(ValueError, match="lr is"):
            session.step(*batch, lr=lr)


def test_a_part_of_a_batch_is_a_step_where_no_statistics_are_taken(weights, batch):
    images, labels = batch
    model = Model.open(weights, classes=4)
    part, whole = (Session(model, "head", batch=n, size=16, momentum=0) for n in (8, 5))
    a, b = part.step(images[:5], labels[:5]), whole.step(images[:5], labels[:5])
    assert a == pytest.approx(b, rel=1e-5) and a["samples"] == 5
    for name, tensor in part.model().state_dict().items():
        np.testing.assert_allclose(tensor, whole.model().state_dict()[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(thawline.ImageError, match="there are 5 images, but a step takes 8, and the statistics"):
        Session(model, "full", batch=8, size=16).step(images[:5], labels[:5])
    with pytest.raises(thawline.ImageError, match="there are 8 images, but a step takes 5"):
        whole.step(images, labels)
    # An evaluation takes any number.
    assert whole.evaluate(images, labels)["samples"] == 8


def test_batches_are_added_up(weights, batch):
    images, labels = batch
    model = Model.open(weights, classes=4)
    parts, whole = (Session(model, "head", batch=n, accumulate=8 // n, size=16, momentum=0) for n in (4, 8))
    parts.step(images[:4], labels[:4])
    assert parts.steps == 0
    parts.step(images[4:], labels[4:])
    whole.step(images, labels)
    assert parts.steps == whole.steps == 1
    for name, tensor in parts.model().state_dict().items():
        np.testing.assert_allclose(tensor, whole.model().state_dict()[name], rtol=1e-5, atol=1e-6)
    gathered = Session(model, "full-accumulated", batch=4, accumulate=2, size=16)
    assert gathered.step(images[:4], labels[:4])["loss"] is None
    assert gathered.step(images[4:], labels[4:])["samples"] == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_goes_on_bit_for_bit(weights, batch, optimizer):
    model = Model.open(weights, classes=4)
    keywords = {"optimizer": optimizer, "batch": 8, "size": 16, "lr": 0.01}
    whole = Session(model, "full", **keywords)
    for _ in range(4):
        whole.step(*batch)
    first = Session(model, "full", **keywords)
    for _ in range(2):
        first.step(*batch)
    state = first.optimizer_state()
    assert state["steps"] == 2 and state["first_moment"]["conv1.weight"].shape == model.state_dict()["conv1.weight"].shape
    assert bool(state["second_moment"]) == (optimizer == "adamw")
    second = Session(first.model(), "full", **keywords)
    second.load_optimizer_state(state)
    for _ in range(2):
        second.step(*batch)
    assert second.steps == 4 and not changed(whole.model().state_dict(), second.model().state_dict())
    with pytest.raises(thawline.WeightsError, match="another network, policy or optimiser"):
        Session(model, "head", **keywords).load_optimizer_state(state)
    with pytest.raises(ValueError, match="has no `first_moment`"):
        second.load_optimizer_state({"steps": 1})


def test_classes_weigh_in_the_loss(weights, batch):
    images, labels = batch
    model = Model.open(weights, classes=4)
    even = Session(model, "head", batch=8, size=16).step(images, labels)["loss"]
    double = Session(model, "head", batch=8, size=16, class_weights=[2.0] * 4).step(images, labels)["loss"]
    assert double == pytest.approx(2 * even, rel=1e-5)
    smooth = Session(model, "head", batch=8, size=16, label_smoothing=0.5).step(images, labels)["loss"]
    assert smooth != even


def test_a_stage_is_chosen(weights, batch):
    model = Model.open(weights, classes=4)
    session = Session(model, "head-then-full", stage=1, batch=8, size=16)
    session.step(*batch)
    assert "conv1.weight" in changed(model.state_dict(), session.model().state_dict())
    with pytest.raises(ValueError, match="stage is 2: head-then-full has stages 0 to 1"):
        Session(model, "head-then-full", stage=2, batch=8)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"optimizer": "adam"}, "optimizer"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"momentum": 0, "nesterov": True}, "nesterov"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum is a keyword of"),
        ({"optimizer": "adamw", "betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9, 0.9)}, "betas is a keyword of"),
        ({"optimizer": "adamw", "eps": 0}, "eps"),
        ({"accumulate": 0}, "accumulate"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"class_weights": [1.0]}, "class weights"),
        ({"class_weights": [1.0, 1.0, 1.0, -1.0]}, "class_weights"),
        ({"lr": -1}, "lr"),
        ({"device": "no such device"}, "no device matches"),
        ({"batch": 0}, None),
        ({"size": 0}, None),
    ],
)
def test_wrong_keywords_are_errors(weights, keywords, said):
    with pytest.raises((ValueError, thawline.ThawlineError), match=said):
        Session(Model.open(weights, classes=4), "head", **keywords)


def test_what_cannot_train_is_an_error(weights, batch):
    model = Model.open(weights, classes=4)
    with pytest.raises(thawline.PolicyError, match="freezes the whole network"):
        Session(model, thawline.Policy("head", sets=["head -> weights=frozen"]), batch=8)
    with pytest.raises(thawline.ImageError, match=r"the images are of 24 px, but the session is for 16 px.*size=\(24, 24\)"):
        Session(model, "head", batch=8, size=16).step(np.zeros((8, 3, 24, 24), np.float32), batch[1])


def test_other_threads_run_meanwhile(weights, random):
    session = Session(Model.open(weights, classes=4), "full", batch=64, size=32)
    images, labels = random.standard_normal((64, 3, 32, 32), np.float32), np.arange(64) % 4
    session.step(images, labels)
    ticks, stop = 0, threading.Event()

    def count():
        nonlocal ticks
        while not stop.wait(0.001):
            ticks += 1

    thread = threading.Thread(target=count)
    thread.start()
    started = time.monotonic()
    for _ in range(3):
        session.step(images, labels)
    elapsed = time.monotonic() - started
    stop.set()
    thread.join()
    # A thread that had to wait for each step would have run three times.
    assert ticks > 10 or elapsed < 0.05


def test_two_threads_share_a_session(weights, batch):
    session = Session(Model.open(weights, classes=4), "head", batch=8, size=16)
    threads = [threading.Thread(target=lambda: [session.step(*batch) for _ in range(5)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert session.steps <= 15 and session.lr == 0.01
    assert session.steps == 15


def test_an_interrupt_ends_a_prediction_between_batches(weights):
    model = Model.open(weights)
    images = np.zeros((20_000, 3, 16, 16), np.float32)
    model.logits(images[:1], batch=1)
    threading.Timer(0.3, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        model.logits(images, batch=1)
