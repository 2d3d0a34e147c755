"""One file for each command that has more to do than to call one function."""
