"""The detector: trunk, pyramid, head, anchors, and from raw outputs to detections. Knows no loss and no config."""
