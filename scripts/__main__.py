"""`python -m rankmq.scripts` is `rankmq`."""

from __future__ import annotations

from .main import main

if __name__ == "__main__":
    main()
