"""The detector: trunk, pyramid, head, anchors, and the way from raw outputs to detections. Knows no loss and no config."""
