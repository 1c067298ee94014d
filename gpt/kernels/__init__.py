"""Operations of the hot loop, each written for speed and small memory: fused ones in Triton for
GPUs, each beside its plain torch version.
"""
