"""Linode's API in a rehearsal: the four resources that the program uses, with the rules that the real one enforces."""
