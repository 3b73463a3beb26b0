"""What programs leave on disk for one another: architectures, tokenizers, bundles, manifests, checkpoints.

Knows nothing of torch, onnx or any runtime: a file format is its bytes and its rules.
"""
