"""AdamW and Muon over all tensors of a population in flat buffers, with statistics of the update.

An arena holds the buffers, the rates and the statistics. `twin` updates it with torch, on any
device. `kernels` updates it with Triton, on a GPU, and needs the extra `kernels`.
"""
