"""A loop of your own: gradient matching on real digits, regularised by one line.

    python examples/own_loop.py [--steps 60] [--weight 0.5]

Needs `pip install 'ddplug[demo]'` for the digits.
"""

import argparse
import tempfile

import torch
from torch.nn import functional as F

import ddplug
from ddplug.augment.dsa import DSA
from ddplug.datasets.images import load, random_real
from ddplug.networks.zoo import convnet
from ddplug.proxies.pretrain import pretrain

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--weight", type=float, default=0.5)
parser.add_argument("--proxy-epochs", type=int, default=10)
args = parser.parse_args()

data = load("digits")
images, labels = random_real(data, ipc=5, generator=torch.Generator().manual_seed(0))
images.requires_grad_()
optimizer = torch.optim.SGD([images], lr=1.0, momentum=0.5)
augment = DSA("color_crop_cutout_scale_rotate")

with tempfile.TemporaryDirectory() as folder:
    small = {"width": 32}
    pool = pretrain(data, folder, count=2, epochs=args.proxy_epochs, lr=0.1, batch_size=64, options=small)
regularizer = ddplug.Regularizer(pool, weight=args.weight)

for step in range(args.steps):
    net = convnet(10, channels=1, size=(8, 8), width=32)
    batch = torch.randint(len(data.train_images), (256,))
    params = augment.draw(images)  # one draw for the real and the synthetic batch
    real, views = augment(data.train_images[batch], params=params), augment(images, params=params)

    views = regularizer(views, labels)  # <- the one line

    real_loss = F.cross_entropy(net(real), data.train_labels[batch])
    target = torch.autograd.grad(real_loss, list(net.parameters()))
    ours = torch.autograd.grad(F.cross_entropy(net(views), labels), list(net.parameters()), create_graph=True)
    loss = sum((1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in zip(ours, target, strict=True)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 9:
        print(f"step {step + 1}: matching loss {loss.item():.3f}, CMI {regularizer.history[-1].cmi:.2e} nats")
