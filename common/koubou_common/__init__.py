"""What all sides of Koubou share: messages, codec, keys, settings, errors."""
