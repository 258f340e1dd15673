"""Meshes, layouts of parameters and batches over them, and runs of several processes."""
