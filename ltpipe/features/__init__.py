"""The feature store: embeddings and augmented views of them, in HDF5."""
