"""Scene understanding: files, metrics and geometry of NYUv2, Cityscapes and rendered rooms."""
