"""Which module is what in each architecture: a table of data, and its resolution for one model."""
