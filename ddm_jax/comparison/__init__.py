"""Objectives across layouts and seeds: the cells, what is measured of them, and the page."""
