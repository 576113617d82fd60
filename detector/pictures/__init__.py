"""Pictures of images, boxes, detections and datasets."""
