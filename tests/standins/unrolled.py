"""A loop of ours of MTT's shape: inner steps of a linear student, kept in the graph; an outer step over all of them."""

import argparse

import torch
from flipping import augment


def main(args):
    torch.manual_seed(0)
    images = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(3).repeat_interleave(4)
    optimizer = torch.optim.SGD([images], lr=0.1)
    # 2: start
    for _ in range(args.steps):
        student = torch.zeros(48, 3, dtype=torch.float64, requires_grad=True)
        first = student
        for step in range(args.syn_steps):  # noqa: B007
            chosen = torch.randperm(12)[:6]
            x, y = images[chosen], labels[chosen]
            # 3: clean
            x = augment(x)
            # 4: views
            inner = torch.nn.functional.cross_entropy(x.flatten(1) @ student, y)
            student = student - 0.1 * torch.autograd.grad(inner, student, create_graph=True)[0]
        loss = ((student - first - 0.05) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(images.detach(), args.out)
    # 5: save


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--syn_steps", type=int, default=4)
    parser.add_argument("--out", default="out.pt")
    # 1: options
    main(parser.parse_args())
