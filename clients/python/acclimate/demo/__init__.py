"""The demo: two real digit sets that ship inside packages, and the walk from one to the other."""
