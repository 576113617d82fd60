"""Images and boxes: reading, resizing, augmenting."""
