"""`ltpipe init`: look at a user's data, advise, write an experiment file."""
