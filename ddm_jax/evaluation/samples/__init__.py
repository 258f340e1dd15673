"""Quality of what a run generates: samples and infilling."""
