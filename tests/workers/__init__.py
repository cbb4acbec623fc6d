"""Work over blocks on a real local Ray cluster of two workers."""
