"""RetinaNet for long-tailed data: model, training, evaluation. A notebook needs
`detector.inference.load_model` and `predict` alone."""
