"""Generated from protos/octavo/open_inference by `make protos`; never edited."""
