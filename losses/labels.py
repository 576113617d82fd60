"""Labels that are no class. Classes are 0..K-1; both values are independent of K."""

BACKGROUND = -1  # negative for every class
IGNORE = -2  # neither positive nor negative: contributes nothing
