"""The lab: what sets are worth, and paired runs with and without the regulariser."""
