"""The Python of README.md and docs/python.md runs as it stands there."""

import re
import shutil

import pytest
from conftest import ROOT


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = blocks(page)
    assert code
    names = {}
    for block in code:
        exec(compile(block, str(page), "exec"), names)  # noqa: S102


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    run(ROOT / "bindings/python/README.md", tmp_path, monkeypatch)
    assert "step / full" in capsys.readouterr().out


def test_the_guide_runs(tmp_path, photos, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    pytest.importorskip("keras", reason="Keras is not installed")
    # The files that the guide opens.
    shutil.copytree(photos, tmp_path / "photos")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    run(ROOT / "docs/python.md", tmp_path, monkeypatch)
    assert (tmp_path / "tuned.safetensors").exists()


def test_the_stubs_name_what_there_is():
    import ast

    import thawline
    from thawline import _thawline

    stubs = ast.parse((ROOT / "bindings/python/python/thawline/_thawline.pyi").read_text(encoding="utf-8"))
    for node in stubs.body:
        if isinstance(node, ast.FunctionDef):
            assert callable(getattr(_thawline, node.name))
        elif isinstance(node, ast.ClassDef) and hasattr(_thawline, node.name):
            of_class = getattr(_thawline, node.name)
            named = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            named |= {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
            there = {name for name in vars(of_class) if not name.startswith("_")}
            assert there == {name for name in named if not name.startswith("_")}, node.name
    classes = {node.name for node in stubs.body if isinstance(node, ast.ClassDef)}
    assert {name for name in vars(_thawline) if isinstance(getattr(_thawline, name), type)} <= classes
    assert all(getattr(thawline, name).__doc__ for name in thawline.__all__ if name != "__version__")
