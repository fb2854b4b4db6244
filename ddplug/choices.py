"""The names that options can take. Torch-free, so that command lines can list them without importing torch."""

from __future__ import annotations

from typing import Literal

WeightingName = Literal["relative", "sustained", "absolute"]
Representation = Literal["feature", "logit"]
Choice = Literal["auto", "feature", "logit"]
Precision = Literal["auto", "exact", "bf16"]
Chunk = int | Literal["auto"]

Sharing = Literal["one", "sharded", "averaged", "replicated", "separate"]
"""Contents of each process of torch.distributed: see `ddplug.Processes`."""

Inner = Literal["one", "last", "all"]
"""Of the views of an unrolled loop's inner steps, those that CMI is estimated on."""
