"""One module per kind of source, imported by name when it is asked for."""
