"""From annotations to batches: order of images, scenes, worker processes."""
