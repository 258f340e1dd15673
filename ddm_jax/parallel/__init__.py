"""Meshes, sharding layouts, multi-process set-up."""
