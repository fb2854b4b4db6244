"""Patches for the upstream repositories, as data files; `hosts.toml` says which commit each one fits."""
