"""What a training step will need: memory, time and communication per GPU, counted on the model itself without running it."""
