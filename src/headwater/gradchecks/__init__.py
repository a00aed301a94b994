"""Gradients held against central differences: right or wrong, and what their signs mean."""
