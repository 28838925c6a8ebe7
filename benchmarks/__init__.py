"""What the package is measured against, and how: ``make bench`` and ``make bench-gpu``."""
