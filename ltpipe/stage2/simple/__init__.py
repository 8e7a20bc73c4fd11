"""Methods of one file each."""
