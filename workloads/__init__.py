"""The ground floor: the layer graph, what is known of zeros, models, data, and the way from PyTorch to a graph."""
