"""AWS's API in a rehearsal: the resources and functions that the program uses, with the rules that the real one has."""
