"""Job and site files: their keys, how they are read, and what must hold between keys."""
