"""CWS, stage two: subclass scores mapped back to classes."""
