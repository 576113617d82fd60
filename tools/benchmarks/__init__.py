"""What things cost, for tools/bench.py."""
