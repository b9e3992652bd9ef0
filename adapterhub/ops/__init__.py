"""One verb, one file: a pure plan, then the deed."""
