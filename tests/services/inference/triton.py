"""tritonclient.grpc, unmodified, beside our own contract.

Both have messages of the names that are on the wire, and one process has one pool of names: here the client gets a
pool of its own. A process that does not import octavo.open_inference needs nothing of this.
"""

from google.protobuf import descriptor_pool


def _imported():
    pool, usual = descriptor_pool.DescriptorPool(), descriptor_pool.Default
    descriptor_pool.Default = lambda: pool
    try:
        import tritonclient.grpc
        import tritonclient.grpc.aio
    finally:
        descriptor_pool.Default = usual
    return tritonclient.grpc


client = _imported()
aio = client.aio
