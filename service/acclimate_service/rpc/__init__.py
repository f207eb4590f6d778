"""gRPC: servicers convert, act, convert; only `status` knows codes, only `convert*` know protos."""
