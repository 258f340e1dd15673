"""Training objectives, one family a file, one signature."""
