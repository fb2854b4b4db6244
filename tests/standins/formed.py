"""A loop of ours of IDC's shape: images in [0, 1], each cut into four, together with real ones; a step per class."""

import torch
from flipping import augment


def formed(images):
    parts = [images[:, :, i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
    return torch.nn.functional.interpolate(torch.cat(parts), size=4, mode="bilinear")


def condense(args):
    torch.manual_seed(0)
    images = torch.rand(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([images], lr=0.1)
    # 2: start
    for _ in range(args.steps):
        for c in range(3):
            real = torch.rand(5, 3, 4, 4, dtype=torch.float64)
            syn, lab_syn = formed(images[c * 4 : (c + 1) * 4]), torch.full((16,), c)  # noqa: F841
            n = len(real)
            both = augment((torch.cat([real, syn]) - 0.5) / 0.25)
            # 4: views
            loss = ((both[:n].mean(0) - both[n:].mean(0)) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(images.detach(), args.out)
    # 5: save


if __name__ == "__main__":
    from settings import args

    condense(args)
