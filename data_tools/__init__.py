"""Making data sets: class folders to one HDF5 file."""
