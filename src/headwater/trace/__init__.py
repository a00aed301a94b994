"""Traces: read and edit activations and gradients of any PyTorch model in ordinary Python.

The model is the coroutine: it runs in a worker that pauses where the user asks for a value, and the
user's code stays the main line.
"""
