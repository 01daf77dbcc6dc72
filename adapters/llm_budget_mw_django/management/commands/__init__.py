"""The commands, one a module: Django finds them by the names of their files."""
