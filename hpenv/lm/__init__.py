"""The language model, its kernels, and the text it is trained on."""
