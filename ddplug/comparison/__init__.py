"""Paired runs with and without the regulariser: plan, runs, judging, statistics, page and pictures."""
