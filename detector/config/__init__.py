"""The configuration: YAML files, what they may say, and what is said of mistakes."""
