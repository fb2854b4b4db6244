"""Trains and tests networks by DM's own `evaluate_synset`, or shows their sizes; not a test, but started by one.

    python judge.py REPO judge JOB.pt       # accuracies of fresh networks, as JSON
    python judge.py REPO networks NAME...   # [parameters, features, logits] of each, as JSON

JOB.pt holds images, labels, test_images, test_labels, model, epochs, runs and strategy ("none" for no DSA).
"""

from __future__ import annotations

import contextlib
import json
import sys
from types import SimpleNamespace

import torch


def judge(path: str) -> list[float]:
    import utils  # the host's

    job = torch.load(path)
    args = SimpleNamespace(
        device="cpu", lr_net=0.01, batch_train=256, epoch_eval_train=job["epochs"], dsa=job["strategy"] != "none",
        dsa_strategy=job["strategy"], dsa_param=utils.ParamDiffAug(), dc_aug_param=None,
    )  # fmt: skip
    test = torch.utils.data.TensorDataset(job["test_images"], job["test_labels"])
    loader = torch.utils.data.DataLoader(test, batch_size=256)
    scores = []
    for run in range(job["runs"]):
        net = utils.get_network(job["model"], 3, 10)  # seeds torch by the clock
        torch.manual_seed(run)
        _, _, score = utils.evaluate_synset(run, net, job["images"].clone(), job["labels"], loader, args)
        scores.append(float(score))
    return scores


def sizes(name: str) -> list[int]:
    import networks  # the host's

    net = getattr(networks, name)(channel=3, num_classes=10)
    images = torch.zeros(2, 3, 32, 32)
    return [sum(p.numel() for p in net.parameters()), net.embed(images).shape[1], net(images).shape[1]]


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        result = judge(sys.argv[3]) if sys.argv[2] == "judge" else {name: sizes(name) for name in sys.argv[3:]}
    print(json.dumps(result))
