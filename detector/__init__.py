"""RetinaNet for long-tailed data: model, training, evaluation. `load_model` and `predict` are all a notebook needs."""
