import json
import shutil
import subprocess

import pytest
from conftest import ROOT

from thawline import Model, Policy


def test_the_summary_is_the_command_lines():
    text = str(Model.new("resnet18", classes=10).plan("bn-only"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("```console\n$ thawline plan")[1].split("```")[0]
    summary = block.split("...\n")[1].rstrip()
    assert text.splitlines()[0] == "resnet18 under bn-only, 32 images of 224×224, 10 classes"
    assert "\n".join(text.splitlines()[1:]) == summary


def test_the_numbers_are_the_command_lines(weights):
    if (thawline := shutil.which("thawline")) is None:
        pytest.skip("the command line is not on the path")
    command = [thawline, "plan", "--weights", weights, "--policy", "head-then-full", "--batch", "8", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert Model.open(weights).plan("head-then-full", batch=8).to_dict() == found


def test_what_trains_costs(weights):
    model = Model.open(weights)
    head, full = model.plan("head", batch=8), model.plan(Policy("full"), batch=8)
    assert 0 < head.memory < full.memory and head.flops < full.flops
    assert model.plan("full", batch=8, momentum=0).memory < full.memory
    assert model.plan("full", batch=8, optimizer="adamw").memory > full.memory
    numbers = head.to_dict()
    assert numbers["step"]["planned_bytes"] == head.memory and numbers["policy"] == "head"
    assert numbers["layers"][0]["name"] == "conv1"
    staged = model.plan("head-then-full", batch=8)
    assert len(staged.to_dict()["stages"]) == 1 and "of the steps on" in str(staged)
    assert any("statistics" in warning for warning in model.plan("full", batch=2, size=8).warnings)


def test_a_notebook_shows_a_row_a_layer_and_no_markup_of_others(tmp_path):
    import thawline

    model = Model.new("resnet_tiny", classes=4)
    html = model.plan("bn-only")._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 2
    assert "conv1" in html and "affine=both" in html and "stats=batch" in html
    policy = tmp_path / "<b>&.toml"
    policy.write_text('base = "head"', encoding="utf-8")
    html = model.plan(thawline.Policy.from_file(policy))._repr_html_()
    assert "&lt;b&gt;&amp;" in html and "<b>&" not in html


def test_a_policy_tells_its_rules(tmp_path):
    policy = Policy("head", sets=["kind:bn -> stats=batch, update=ema, affine=both"])
    assert policy.name == "head" and policy.rules[-1].startswith("kind:bn -> stats=batch")
    file = tmp_path / "mine.toml"
    file.write_text('rules = ["head -> weights=train"]\n[[stages]]\nfrom = 0.5\nrules = ["!kind:bn -> weights=train"]', "utf-8")
    for mine in [Policy.from_file(file, sets=["head -> lr=2"]), Policy(str(file), ["head -> lr=2"])]:
        assert mine.name == "mine" and mine.rules == ["head -> weights=train", "head -> lr=2"]
        assert mine.stages[0][0] == 0.5 and mine.stages[0][1][-1] == "head -> lr=2"
