"""Neural processing units for embedded systems."""
