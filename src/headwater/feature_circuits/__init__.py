"""Circuits of dictionary features: node effects, direct edges, and what checks them."""
