"""Whole runs and comparisons, from a folder of images."""

import csv
import json

import pytest
import thawline


def test_finetune_trains_tells_and_leaves_files(weights, photos, tmp_path):
    events = []
    found = thawline.finetune(
        weights, photos, tmp_path / "run", "full", epochs=3, batch=8, lr=0.01, head="new", callback=events.append
    )
    assert found["finished"] and not found["ended_early"]
    assert [epoch["epoch"] for epoch in found["history"]] == [0, 1, 2, 3]
    assert found["best"]["val"]["top1"] >= found["history"][0]["val"]["top1"]
    names = [event["event"] for event in events]
    assert names[0] == "started" and names.count("epoch") == 4 and names.count("step") == 9
    tuned = thawline.Model.open(found["weights"][0])
    assert tuned.class_names == ["bright", "dark"]
    with open(found["metrics"]) as file:
        assert len(list(csv.DictReader(file))) == 4


def test_a_stopped_run_goes_on_to_the_same_numbers(weights, photos, tmp_path):
    keywords = dict(epochs=2, batch=8, lr=0.01, head="new")
    whole = thawline.finetune(weights, photos, tmp_path / "whole", "bn-only", **keywords)
    stop = lambda event: event["event"] != "step" or event["step"] < 2  # noqa: E731
    begun = thawline.finetune(weights, photos, tmp_path / "parts", "bn-only", callback=stop, **keywords)
    assert not begun["finished"]
    rest = thawline.finetune(None, photos, tmp_path / "parts", resume=True)
    assert rest["finished"] and rest["history"] == whole["history"]


def test_what_a_callback_raises_ends_the_run_saved(weights, photos, tmp_path):
    def callback(event):
        if event["event"] == "step":
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        thawline.finetune(weights, photos, tmp_path / "run", epochs=1, batch=8, head="new", callback=callback)
    assert thawline.finetune(None, photos, tmp_path / "run", resume=True)["finished"]


def test_a_model_in_memory_starts_a_run(weights, photos, tmp_path):
    model = thawline.Model.open(weights)
    found = thawline.finetune(model, photos, tmp_path / "run", "head", epochs=1, batch=8)
    assert found["finished"]


def test_compare_gives_a_table_a_page_and_weights(weights, photos, tmp_path):
    events = []
    found = thawline.compare(
        weights, photos, tmp_path / "cmp", ["head", thawline.Policy("bn-only")], seeds=1, lr=0.01, epochs=1, batch=8,
        head="new", callback=events.append,
    )  # fmt: skip
    assert found.finished and [row["policy"] for row in found.rows] == ["head", "bn-only"]
    assert found.to_dict() == json.loads((tmp_path / "cmp/compare.json").read_text())
    assert found.report.exists() and found.conclusion and str(found).startswith(found.conclusion[0])
    assert found._repr_html_().startswith("<iframe srcdoc=")
    assert {event["policy"] for event in events} == {"head", "bn-only"}
    again = thawline.compare(None, photos, tmp_path / "cmp", resume=True)
    assert again.to_dict() == found.to_dict()


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        (dict(lerning_rate=1.0), TypeError, "lerning_rate"),
        (dict(optimizer="adam"), ValueError, '"adamw"'),
        (dict(lr="fast"), ValueError, '"auto"'),
        (dict(lr=[0.1, 0.01]), ValueError, "compare"),
        (dict(epochs=0), ValueError, "epochs"),
        (dict(momentum=0.9, optimizer="adamw"), ValueError, "momentum"),
        (dict(policy="fool"), thawline.PolicyError, "full"),
        (dict(classes=3), thawline.ImageError, "2 classes"),
    ],
)
def test_what_is_wrong_is_named(weights, photos, tmp_path, keywords, error, message):
    with pytest.raises(error, match=message):
        thawline.finetune(weights, photos, tmp_path / "run", **keywords)
    assert not (tmp_path / "run").exists()
