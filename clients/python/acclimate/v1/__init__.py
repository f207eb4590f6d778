"""The generated messages and stubs of the proto package ``acclimate.v1``."""
