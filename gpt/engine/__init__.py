"""DeepSpeed and its ZeRO, behind one boundary: `boundary` alone imports deepspeed."""
