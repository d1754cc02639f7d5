"""Sparse accelerators: machines that skip multiplications with zeros."""
