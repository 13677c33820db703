"""Video sources, samplers and augmentation."""
