"""Elements of logits that the output layer holds at a time. Needs no torch."""

# Elements of one chunk of the output layer's logits, by device type. On a CPU a chunk should stay
# near the caches. A GPU wants all rows in one, for which no gradients of chunks are added up: 32 x
# 512 tokens at vocabulary 16,384 in half a GiB.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "default": 1 << 28}
