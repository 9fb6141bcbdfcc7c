"""Offline jobs: rows in, results out, never twice and never from zero. See docs/jobs.md."""
