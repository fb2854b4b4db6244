"""`ddplug find`: places in small scripts written here, found by reading them and by running a few steps."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest

from ddplug.cli.app import app
from ddplug.errors import HostError, InputError
from ddplug.scripts.any_script import Unpatched
from ddplug.scripts.finding import Candidate, find
from ddplug.scripts.trying import try_places

STANDINS = Path(__file__).parents[1] / "standins"

AUG = """
    import torch
    def wobble(x):
        return torch.roll(x, int(torch.randint(3, ())), 3)
    def DiffAugment(x, seed=0):
        return x.flip(3)
"""
"""A module that the scripts import from."""

DM = """
    import torch
    from aug import DiffAugment
    def main():
        image_syn = torch.randn(20, 3, 8, 8, requires_grad=True)
        optimizer = torch.optim.SGD([image_syn, ], lr=1)
        for it in range(9):
            loss = 0
            for c in range(10):
                real = torch.randn(5, 3, 8, 8)
                img_syn = image_syn[c * 2:(c + 1) * 2].reshape((2, 3, 8, 8))
                real = DiffAugment(real)
                img_syn = DiffAugment(img_syn)
                loss += ((real.mean(0) - img_syn.mean(0)) ** 2).sum()
            with torch.no_grad():
                seen = DiffAugment(image_syn)
            kept = DiffAugment(image_syn.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if __name__ == "__main__":
        main()
"""
MTT = """
    import torch
    import aug as A
    images, soft = torch.randn(6, 3, 8, 8), torch.zeros(6)
    images = images.detach().requires_grad_(True)
    optimizer = torch.optim.SGD([images], lr=1)
    labels = torch.zeros(6).long()
    for it in range(9):
        w = torch.zeros(192, requires_grad=True)
        for step in range(args.syn_steps):
            which = torch.randperm(6)[:4]
            x = images[which]
            y = labels[which]
            x = A.wobble(x)
            w = w - torch.autograd.grad((x.flatten(1) @ w - y).sum(), w, create_graph=True)[0]
        total = (w ** 2).sum()
        total.backward()
        optimizer.step()
"""
IDC = """
    import torch
    class Held:
        def __init__(self):
            self.data = torch.rand(4, 3, 8, 8, requires_grad=True)
        def sample(self, c):
            return self.data, torch.full((4,), c)
        def parameters(self):
            return [self.data]
    def main(aug):
        synset = Held()
        optim_img = torch.optim.SGD(synset.parameters(), lr=1)
        for c in range(2):
            img = torch.rand(5, 3, 8, 8)
            img_syn, lab_syn = synset.sample(c)
            img_aug = aug(torch.cat([img, img_syn]))
            loss = (img_aug[:5].mean(0) - img_aug[5:].mean(0)).sum()
            loss.backward()
            optim_img.step()
"""
WITHOUT = """
    import torch
    images = torch.randn(6, 3, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": images}])
    x = images[:4]
    loss = x.sum()
    loss.backward()
"""
ELSEWHERE = """
    import torch
    from aug import DiffAugment
    def matched(real, syn):
        syn = DiffAugment(syn)
        return (real - syn).sum()
    def main():
        images = torch.randn(6, 3, 8, 8, requires_grad=True)
        optimizer = torch.optim.SGD([images], lr=1)
        matched(0, images).backward()
"""


def write(folder: Path, **texts: str) -> Path:
    for name, text in {"aug": AUG, **texts}.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text).lstrip())
    return folder


def line_of(candidate: Candidate) -> str:
    return candidate.path.read_text().splitlines()[candidate.line - 1].strip()


@pytest.mark.parametrize(
    ("text", "line", "at", "labels", "steps"),
    [
        (DM, "img_syn = DiffAugment(img_syn)", "aug:DiffAugment", "c", ""),
        (MTT, "x = A.wobble(x)", "script.py:13", "y", "args.syn_steps"),
        (MTT.replace("torch.zeros(6).long()", "soft.requires_grad_()"), "x = A.wobble(x)", "script.py:13",
         "which // args.ipc", "args.syn_steps"),
        (IDC, "img_aug = aug(torch.cat([img, img_syn]))", "script.py:15", "lab_syn", ""),
        (WITHOUT, "x = images[:4]", "script.py:4", "", ""),
        (ELSEWHERE, "syn = DiffAugment(syn)", "aug:DiffAugment", "", ""),
    ],
)  # fmt: skip
def test_the_place_comes_first(text: str, line: str, at: str, labels: str, steps: str, tmp_path: Path) -> None:
    folder = write(tmp_path, script=text)
    for path in (folder, folder / "script.py"):
        first = find(path)[0]
        assert line_of(first) == line
        assert (first.at, first.labels, first.steps) == (at, labels, steps)
        assert f"--script {folder / 'script.py'} --at {at}" in first.command


def test_what_has_no_gradient_is_no_candidate(tmp_path: Path) -> None:
    found = [line_of(each) for each in find(write(tmp_path, script=DM))]
    assert len(found) == 2  # the views, and the images before they are augmented
    assert not [line for line in found if "real" in line or "seen" in line or "kept" in line]


def test_what_comes_to_a_backward_pass_is_likelier(tmp_path: Path) -> None:
    more = DM.replace("optimizer.zero_grad()", "shown = DiffAugment(image_syn); optimizer.zero_grad()")
    more = more.replace("for it in range(9):", "first = DiffAugment(image_syn)\n        for it in range(9):")
    found = [line_of(each) for each in find(write(tmp_path, script=more))]
    assert found[0] == "img_syn = DiffAugment(img_syn)"
    assert found[1].startswith("shown") or found[2].startswith("shown")
    comes = ["its result comes to a backward pass" in each.why for each in find(tmp_path)]
    assert comes == [True, False, False, False]


def test_files_that_are_no_python_are_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path, script=DM, other="def f(", more="print 1")
    assert len(find(folder)) == 2
    with pytest.raises(HostError, match="no Python files"):
        (tmp_path / "empty").mkdir()
        find(tmp_path / "empty")
    with pytest.raises(HostError, match="is no Python"):
        find(folder / "other.py")


def test_a_few_steps_show_which_places_get_synthetic_images(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    labelled = DM.replace("for it in", "lab_syn = torch.arange(len(image_syn)); which = lab_syn\n        for it in", 1)
    folder = write(tmp_path, script=labelled.replace("range(9)", "range(10 ** 9)"))
    app(["find", str(folder / "script.py"), "--try", "--passes", "2"], standalone_mode=False)
    said = capfd.readouterr().out
    assert "1. script.py:13  DiffAugment(img_syn)" in said
    assert "--at aug:DiffAugment: called at script.py:13 on synthetic images 20 times, views [2, 3, 8, 8]" in said
    assert "a gradient came in 2 backward passes" in said
    assert "2 views of the 20 images" in said
    assert "may be their labels: lab_syn in main()" in said
    assert "also of that length: which in main()" in said
    assert "script.py:11" in said


def test_rows_and_places_that_never_come_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    repo = shutil.copytree(STANDINS, tmp_path / "repo", ignore=shutil.ignore_patterns("__pycache__"))
    script = Unpatched(repo / "formed.py")
    (seen,) = try_places(script, ["flipping:augment", "formed:formed"], ["--steps", "1"], passes=9)[1:]
    assert (seen.at, seen.where, seen.shape) == ("flipping:augment", "formed.py:22", [21, 3, 4, 4])
    assert seen.rows == "16 views of the 12 images, beside 5 real ones"
    assert seen.calls == seen.passes == 3
    with pytest.raises(HostError, match="ended with status 2 before"):
        try_places(script, ["flipping:augment"], ["--no-such-option"])
    with pytest.raises(InputError, match="--try runs one script"):
        app(["find", str(repo), "--try"], standalone_mode=False)
    with pytest.raises(InputError, match="there is no"):
        app(["find", str(repo / "none")], standalone_mode=False)
