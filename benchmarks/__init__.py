"""How much the middleware costs, measured against what it stands beside; see README.md."""
