"""Frozen networks, pools of them, their files and their training."""
