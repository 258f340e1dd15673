"""Published PyTorch weights in and out (docs/interop.md)."""
