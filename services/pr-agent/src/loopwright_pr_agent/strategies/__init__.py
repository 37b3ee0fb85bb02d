"""Ways to make a change: each behind the Strategy port."""
