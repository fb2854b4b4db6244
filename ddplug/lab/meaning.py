"""The meaning of the numbers in a set's images: by its file, by its layout, or by the user."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import NORMALIZATIONS, AnySpace, InputSpace
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.errors import InputError, caution
from ddplug.proxies.pool import ProxyPool

SIDE, SMOOTH = 32, 0.65
"""Smallest side of images whose pixels are compared; correlation of pixels two apart that whitened images stay below.

Of CIFAR-10 (ten images or more) it is 0.68 to 0.89, whitened 0.11 to 0.43; after `apart`, 0.88 to 0.92 and 0.55 to
0.64. Of shapes it is 0.76 to 0.90, whitened 0.30 to 0.46. Sets of eight hosts, begun from CIFAR-10's: 0.67 to 0.81.
"""


def with_space(synthetic: SyntheticSet, given: str | None, data: ImageData) -> SyntheticSet:
    """The set with a space: the one it has, or the one `given`, or the one that is known from its layout.

    `given` is "normalized" (as `data` is), "unit" (intensities in [0, 1]), "zca" (whitened, fitted on `data`'s training
    images), or None. Raises `InputError` if the set has another space than the given one, or if none is known.
    """
    known = synthetic.space
    meaning = given or (synthetic.meaning if known is None else None)
    if meaning is None:
        if known is not None:
            return synthetic
        raise InputError(
            "the set does not say what the numbers in its images mean. Say whether they are normalized as the data "
            "set is, unit (intensities in [0, 1]), or zca (whitened): --input-space of the command, or `space` of the "
            "SyntheticSet."
        )
    if known is None:
        _compare_pixels(synthetic, given, whitened=meaning == "zca")
    return _in_space(synthetic, _named(meaning, data))


def kept_set(path: Path, data: ImageData) -> tuple[SyntheticSet, AnySpace]:
    """The set that a comparison kept in `path`, and its space: the file's, or by the meaning that it says.

    That meaning comes from the host's options, so it holds however the pixels look.
    """
    kept = load_set(path)
    space = kept.space or _named(kept.meaning or "", data)
    return replace(kept, space=space), space


def seen_by(
    pool: ProxyPool, synthetic: SyntheticSet, given: str | None = None, data: ImageData | None = None
) -> SyntheticSet:
    """The set with a space in which `pool` sees it as it is meant; without one if it is taken for the pool's own.

    Args:
        pool: proxies.
        synthetic: the set.
        given: "normalized", "unit" or "zca", if the set does not say.
        data: the real images, by which a set is whitened or normalised, if the pool does not know.

    Raises:
        InputError: the set has another space than is given, it is whitened and the pool is not, or the reverse, and
            `data` is None.
    """
    meaning = given or synthetic.meaning
    own, channels = pool.info.space, synthetic.images.shape[1]
    if synthetic.space is None and (own is not None or meaning is not None):
        whitened = meaning == "zca" if meaning is not None or own is None else is_whitened(own)
        _compare_pixels(synthetic, given, whitened=whitened)
    if meaning is None or (given is None and (synthetic.space is not None or own is None)):
        return synthetic
    space: AnySpace | None = None
    if meaning == "zca" and own is not None and is_whitened(own):
        space = own
    elif data is not None:
        space = _named(meaning, data)
    elif meaning == "unit":
        space = InputSpace.unit(channels)
    elif meaning == "normalized":
        space = NORMALIZATIONS.get(pool.info.dataset or "")
        if space is None and own is not None and not is_whitened(own):
            return synthetic
    if space is None:
        raise InputError(
            f"the set's images are {meaning}, and these proxies were trained on images {own}. Give the real data that "
            "the set was distilled from, to convert its images: --data of the command, or data=."
        )
    pool.space_of(space)
    return _in_space(synthetic, space)


def _in_space(synthetic: SyntheticSet, space: AnySpace) -> SyntheticSet:
    known = synthetic.space
    if known is not None and known != space:
        raise InputError(f"the set's file says that its images are {known}, but {space} was asked for; leave it out.")
    return replace(synthetic, space=space)


def _compare_pixels(synthetic: SyntheticSet, given: str | None, *, whitened: bool) -> None:
    """Warn if the images do not look as they are taken: `whitened`, or not; unless the set's file says that they are.

    If the user says that they are not, they may have begun as noise, which looks so too.
    """
    images = synthetic.images.double()
    certain = synthetic.meaning == "zca" if given is None else not whitened
    if certain or min(images.shape[2:]) < SIDE:
        return
    images = images - images.mean((0, 2, 3), keepdim=True)
    across, down = images[..., 2:] * images[..., :-2], images[..., 2:, :] * images[..., :-2, :]
    alike = float((across.mean() + down.mean()) / 2 / images.square().mean())
    text = (
        f"pixels two apart in the set's images correlate by {alike:.2f}, and in whitened images by less than {SMOOTH}. "
    )
    if not whitened and alike < SMOOTH:
        _warn(
            f"{text}The images are taken as not whitened. If the host whitened them, give --input-space zca; if they "
            "began as noise, give --input-space normalized."
        )
    elif whitened and alike > SMOOTH:
        _warn(
            f"{text}The images are taken as whitened. If they are not, give --input-space normalized, or unit for "
            "intensities in [0, 1]."
        )


@functools.cache
def _warn(text: str) -> None:
    """Issue a warning, once: a command looks at its set in more than one place."""
    caution(text, stacklevel=4)


def is_whitened(space: AnySpace) -> bool:
    """Return True if images of a space are ZCA-whitened."""
    return bool(space.to_json()["kind"] == "zca")


def _named(meaning: str, data: ImageData) -> AnySpace:
    if meaning == "normalized":
        return data.space
    if meaning == "unit":
        return InputSpace.unit(data.shape[0])
    if meaning == "zca":
        from ddplug.datasets.zca import ZCASpace

        return ZCASpace.fit(data.space.to_unit(data.train_images).clamp(0, 1))
    raise InputError(f"unknown input space {meaning!r}, expected normalized, unit or zca")
