"""A loop of ours of DM's shape: a call per class, one backward pass and one step for all classes. Options in main()."""

import argparse

import torch
from flipping import augment


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", default="out.pt")
    # 1: options
    args = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([images], lr=0.1)
    # 2: start
    for _ in range(args.steps):
        loss = 0
        for c in range(3):
            views = images[c * 4 : (c + 1) * 4]
            # 3: clean
            views = augment(views)
            # 4: views
            loss = loss + ((views.mean(0) - c) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(images.detach(), args.out)
    # 5: save


if __name__ == "__main__":
    main()
