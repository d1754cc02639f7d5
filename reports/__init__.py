"""Records of results, the figures that draw them, and self-contained HTML pages."""
