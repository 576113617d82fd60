"""Detectors of other projects as ours, and back: EFL's own code, torchvision, detectron2, mmdetection."""
