"""Files, locks, progress and measuring."""
