"""The one check that proxies are of the data that they are to look at."""

from __future__ import annotations

from ddplug.errors import PoolError
from ddplug.proxies.proxy import PoolInfo


def check_data(
    info: PoolInfo,
    dataset: str,
    fingerprint: str | None = None,
    *,
    pool: str = "this pool of proxies",
    because: str = "",
    unknown: bool = True,
) -> None:
    """`PoolError` if a pool says that it was trained on other data than `dataset`.

    Args:
        info: what the pool says of itself.
        dataset: name of the data; upper case, hyphens and underscores make no difference, as hosts write CIFAR-10.
        fingerprint: `ImageData.fingerprint()` of the data, by which two editions of one name differ; None to compare
            names only.
        pool: what to call the pool in the error.
        because: why it has to be this data set, as a clause, if that is not obvious.
        unknown: whether a pool that does not say what it was trained on is accepted.
    """
    named = info.dataset
    if named is None and not unknown:
        trained = f"an unknown data set, not on {dataset}"
    elif named is not None and _plain(named) != _plain(dataset):
        trained = f"{named}, not on {dataset}"
    elif fingerprint is not None and info.fingerprint not in (None, fingerprint):
        trained = f"another edition of {dataset}"
    else:
        return
    reason = f" ({because})" if because else ""
    raise PoolError(
        f"{pool} was trained on {trained}{reason}. A proxy says nothing useful of images it does not know. Train some "
        "on this data with `ddplug pretrain`; or, if you know better, leave dataset and fingerprint out of the pool's "
        "info."
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
