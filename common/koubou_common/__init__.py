"""What all sides of Koubou share: messages, codec, keys, settings, errors."""

__version__ = "0.1.0"  # pyproject.toml has the same (a test compares them)
