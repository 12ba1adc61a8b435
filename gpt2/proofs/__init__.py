"""What is proven of each step before it may spend GPU time."""
