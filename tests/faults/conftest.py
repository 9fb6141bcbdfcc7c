"""The engines of the end-to-end tests, for tests that damage them."""

from tests.e2e.conftest import build, start, vhosts

__all__ = ["build", "start", "vhosts"]
