"""COCO and LVIS annotation files, read once and kept as arrays."""
