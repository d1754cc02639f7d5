"""Makes a model sparse: masks, granularities, methods, sensitivity, plans that build smaller modules, training."""
