"""A trainer that exists: attach, run, look, detach.

    python examples/attach_to_a_trainer.py [--iterations 100] [--weight 0.5] [--proxies FOLDER]

The trainer is ddplug's own DM, treated as anybody's: nothing in it knows of CMI. Without --proxies a small pool is
trained once and cached.
Needs `pip install 'ddplug[demo]'` for the digits.
"""

import argparse

import ddplug
from ddplug.datasets.images import load
from ddplug.lab.dm_trainer import DistributionMatching

parser = argparse.ArgumentParser()
parser.add_argument("--iterations", type=int, default=100)
parser.add_argument("--weight", type=float, default=0.5)
parser.add_argument("--proxies", help="a pool that `ddplug pretrain` made")
args = parser.parse_args()

trainer = DistributionMatching(
    load("digits"), ipc=10, strategy="color_crop_cutout_scale_rotate", batch_real=64, options={"width": 64}
)

with ddplug.attach(
    trainer, weight=args.weight, proxies=args.proxies
) as handle:  # finds trainer.augment, its labels, and the real data
    trainer.run(args.iterations, lambda done, loss: done % 20 == 0 and print(f"{done}: loss {loss:.3f}"))

print(f"lambda {handle.lam}; CMI of the views {handle.history[0].cmi:.2e} -> {handle.history[-1].cmi:.2e} nats")
