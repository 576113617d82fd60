"""Files of detections."""
