"""The options of `formed.py`, parsed when this module is imported."""

import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2)
parser.add_argument("--out", default="out.pt")
# 1: options
args = parser.parse_args()
