"""Ahead-of-time compilation of a recipe for TPUs or GPUs, with the memory and time of a step."""
