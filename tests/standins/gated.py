"""A loop of ours of DATM's shape: labels are learned, too, and a step is taken only if the loss is small enough."""

import argparse

import torch
from flipping import augment


def main(args):
    torch.manual_seed(0)
    images = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    soft = torch.zeros(12, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([images], lr=0.1)
    of_labels = torch.optim.SGD([soft], lr=0.5)
    accepted = []
    # 2: start
    for _ in range(args.steps):
        chosen = torch.randperm(12)[:8]
        x, y = images[chosen], soft[chosen]
        # 3: clean
        x = augment(x)
        # 4: views
        loss = ((x.mean((1, 2, 3))[:, None] - y - 0.3) ** 2).mean() + torch.rand(()) * 0.1
        optimizer.zero_grad()
        of_labels.zero_grad()
        loss.backward()
        if loss <= args.threshold:
            optimizer.step()
            of_labels.step()
            accepted.append(len(accepted))
    torch.save((images.detach(), soft.detach(), len(accepted)), args.out)
    # 5: save


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threshold", type=float, default=0.18)
    parser.add_argument("--out", default="out.pt")
    # 1: options
    parsed = parser.parse_args()
    main(parsed)
