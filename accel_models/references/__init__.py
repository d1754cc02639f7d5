"""Small machines that move every value cycle by cycle and compute the layer: the ground under the closed forms.

They are slow on purpose and price nothing; tests hold their outputs against PyTorch and their cycles against the
families' formulas.
"""
