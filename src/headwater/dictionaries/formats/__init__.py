"""The formats of dictionaries on disk, one file each; every one has `fits` and `read`."""
