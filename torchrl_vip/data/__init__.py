"""Video sources, samplers, augmentation and rendered demonstrations."""
