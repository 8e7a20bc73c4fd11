"""The commands of `ltpipe`, a module a family; each adds its own to the parser."""
